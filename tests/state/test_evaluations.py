"""What gates measured, as the history keeps it: by content and by what measured it, and not for ever of what came to nothing."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from mergd.state.history import History
from mergd.state.records import Evaluation, Metric, Totals, Version

ONE = Evaluation("draft", "eval", "v1 of it", {"a": Metric(0.5, True, 10), "b": Metric(-1.0, False, 2)}, 1.5, "now")


@pytest.fixture
def history(tmp_path: Path) -> Iterator[History]:
    with History(tmp_path / "mergd.db", write=True) as history:
        history.pin({"base_digest": "base"})
        yield history


def version(number: int, digest: str) -> Version:
    return Version(number, number - 1 or None, "read-out", None, "average", Totals(), 1.0, digest, "now")


def test_what_was_measured_is_read_back(history: History) -> None:
    history.evaluations.add(ONE)
    assert history.evaluations.of("draft") == {"eval": ONE}
    assert history.evaluations.by("v1 of it") == {"draft": ONE.metrics}
    assert (history.evaluations.of("other"), history.evaluations.by("v2 of it")) == ({}, {})


def test_what_is_measured_again_takes_the_place_of_the_old(history: History) -> None:
    again = replace(ONE, metrics={"a": Metric(0.75, True, 10)})
    for evaluation in (ONE, again):
        history.evaluations.add(evaluation)
    assert history.evaluations.of("draft") == {"eval": again}


def test_of_a_gate_that_was_changed_the_newest_counts(history: History) -> None:
    changed = replace(ONE, identity="v2 of it", metrics={"a": Metric(0.25, True, 10)})
    for evaluation in (ONE, changed, replace(ONE, gate="other", identity="other")):
        history.evaluations.add(evaluation)
    assert history.evaluations.of("draft") == {"eval": changed, "other": replace(ONE, gate="other", identity="other")}
    assert history.evaluations.by("v1 of it") == {"draft": ONE.metrics}


def test_of_what_became_no_version_only_the_newest_stay(history: History) -> None:
    history.restore(version(1, "first"))
    for digest in ("base", "first", *(f"held {k}" for k in range(5))):
        history.evaluations.add(replace(ONE, digest=digest))
    history.evaluations.prune(keep=2)
    assert history.evaluations.by("v1 of it").keys() == {"base", "first", "held 3", "held 4"}


def test_the_way_leads_from_the_base_model_to_the_head(history: History) -> None:
    for number, digest in ((1, "a"), (2, "b"), (3, "c")):
        history.restore(version(number, digest))
    assert history.evaluations.way(2, "total") == ["b", "a", "base"]
    assert history.evaluations.way(None, "total") == ["base"]
