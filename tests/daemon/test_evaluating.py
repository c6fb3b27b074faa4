"""What a draft is held against: the best of each metric on the way to the head, found without reading the whole way."""

from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from mergd.daemon.evaluating import best_before
from mergd.plugins.gates.tolerance import best_of
from mergd.state.history import History
from mergd.state.records import Evaluation, Metric, Metrics, Totals, Version


@pytest.fixture
def history(tmp_path: Path) -> Iterator[History]:
    with History(tmp_path / "mergd.db", write=True) as history:
        history.pin({"base_digest": "0"})
        yield history


def measure(history: History, digest: str, value: float) -> Metrics:
    metrics = {"up": Metric(value, True, 1), "down": Metric(value, False, 1)}
    history.evaluations.add(Evaluation(digest, "eval", "it", metrics, 1.0, "now"))
    return metrics


def version(number: int) -> Version:
    return Version(number, number - 1 or None, "read-out", None, "ema", Totals(), 1.0, str(number), "now")


def test_it_is_the_best_of_the_whole_way_and_two_measurements_are_read(
    history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    random, read = Random(0), list[str]()
    one = history.evaluations.one

    def counted(digest: str, identity: str) -> Metrics | None:
        read.append(digest)
        return one(digest, identity)

    monkeypatch.setattr(history.evaluations, "one", counted)
    way = [measure(history, "0", 0.5)]
    assert best_before(history, None, "it") == (best_of(way), False)
    for number in range(1, 21):
        way.append(measure(history, str(number), random.random()))
        history.restore(version(number))
        read.clear()
        assert best_before(history, version(number), "it") == (best_of(way), False)
        assert len(read) <= (3 if number == 1 else 1)


def test_a_base_model_that_was_never_measured_is_to_count(history: History) -> None:
    history.restore(version(1))
    head = measure(history, "1", 0.5)
    assert best_before(history, version(1), "it") == (head, True)
    base = measure(history, "0", 0.75)
    assert best_before(history, version(1), "it") == (best_of([base, head]), False)
