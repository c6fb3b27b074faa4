"""Checkpoints that change while a real daemon folds them; `make mutations` runs as many as you like."""

import pytest
from hostile.mutations import mutate

pytestmark = pytest.mark.long


def test_a_daemon_lives_through_all_changes_and_folds_nothing_mixed() -> None:
    report = mutate(12, seed=2)
    assert not report.died
    assert not report.wrong
    assert report.changes.total() == 12
    assert report.ends["changed"] > 0, "no change was made in the middle of a fold"
