"""What gates measured, as the history keeps it: by content and by what measured it, and not for ever of what came to nothing."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from mergd.state.evaluations import Leg
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


def way(history: History, number: int | None) -> Leg:
    return history.evaluations.leg(number, "v1 of it", "total")


def test_the_way_leads_from_the_base_model_to_the_head(history: History) -> None:
    for number, digest in ((1, "a"), (2, "b"), (3, "c")):
        history.restore(version(number, digest))
    assert way(history, 2) == Leg(["base", "a", "b"])
    assert way(history, None) == Leg(["base"])


def test_it_goes_on_from_where_the_best_is_kept(history: History) -> None:
    for number, digest in ((1, "a"), (2, "b"), (3, "c")):
        history.restore(version(number, digest))
    history.evaluations.keep_best(2, "v1 of it", ONE.metrics)
    assert way(history, 3) == Leg(["c"], ONE.metrics)
    assert way(history, 2) == Leg([], ONE.metrics)
    assert history.evaluations.leg(3, "v2 of it", "total") == Leg(["base", "a", "b", "c"])


@pytest.mark.parametrize("digest", ["a", "base"])
def test_what_is_measured_later_on_the_way_counts(history: History, digest: str) -> None:
    history.restore(version(1, "a"))
    history.evaluations.keep_best(1, "v1 of it", {})
    history.evaluations.add(replace(ONE, digest="draft"))  # not on it
    assert way(history, 1) == Leg([])
    history.evaluations.add(replace(ONE, digest=digest))
    assert way(history, 1) == Leg(["base", "a"])


def test_the_best_is_kept_of_the_newest_alone(history: History) -> None:
    for number, digest in ((1, "a"), (2, "b"), (3, "c")):
        history.restore(version(number, digest))
        history.evaluations.keep_best(number, "v1 of it", ONE.metrics, keep=2)
    assert way(history, 1) == Leg(["base", "a"])
    assert way(history, 2) == Leg([], ONE.metrics)
