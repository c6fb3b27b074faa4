"""kill -9 between a namespace and what is pushed; `make hub-kills` kills as often as you like."""

import pytest
from journeys.hub_kills import kill

pytestmark = pytest.mark.long


def test_each_is_folded_once_and_each_version_pushed_once() -> None:
    report = kill(3, seed=3)
    assert report.wrong == []
    assert report.during.total() == 3
