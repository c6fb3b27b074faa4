"""Transfer: what became of each metric since it was brought."""

import pytest

from mergd.daemon.transfer import Stop, backward_transfer, is_of, matrix, rows_of
from mergd.state.records import Metric


def stop(version: int, brought: str = "", higher: bool = True, **values: float) -> Stop:
    return Stop(version, brought, {name: Metric(value, higher, 1) for name, value in values.items()})


def test_it_is_the_mean_of_the_papers() -> None:
    """1/(T-1) times the sum over i < T of what task i has at T, less what it had at i (GEM, arXiv 1706.08840, eq. 3)."""
    measured = {1: (0.9, 0.1, 0.2), 2: (0.7, 0.8, 0.2), 3: (0.6, 0.75, 0.95)}
    line = [stop(0, a=0.1, b=0.1, c=0.1)]
    line += [
        stop(i, name, a=row[0], b=row[1], c=row[2]) for (i, row), name in zip(measured.items(), "abc", strict=True)
    ]
    assert backward_transfer(rows_of(line)) == pytest.approx(((0.6 - 0.9) + (0.75 - 0.8)) / 2)


@pytest.mark.parametrize(("higher", "gained"), [(True, -0.25), (False, 0.25)])
def test_what_is_better_when_lower_gains_by_falling(higher: bool, gained: float) -> None:
    assert backward_transfer(rows_of([stop(1, higher=higher, a=0.75), stop(2, higher=higher, a=0.5)])) == gained


def test_a_metric_of_no_checkpoints_name_counts_from_where_it_was_first_measured_but_for_the_base() -> None:
    line = [stop(0, a=9.0), stop(2, "x", a=1.0), stop(3, "y", a=3.0, b=1.0), stop(4, "z", a=2.0, b=5.0)]
    assert [(row.name, row.since, row.gained) for row in rows_of(line)] == [("a", 2, 1.0), ("b", 3, 4.0)]
    assert rows_of(line)[0].base == Metric(9.0, True, 1)
    assert rows_of(line)[1].base is None


def test_where_its_own_version_was_not_measured_the_next_one_counts() -> None:
    assert rows_of([stop(1, "x", a=0.0), stop(3, "a", a=1.0), stop(4, "z", a=2.0)])[0].since == 3


def test_what_the_last_version_brought_does_not_count() -> None:
    assert backward_transfer(rows_of([stop(0, a=0.0), stop(1, "a", a=1.0)])) is None
    assert backward_transfer(rows_of([stop(1, "x", a=0.0), stop(2, "a", a=1.0)])) is None


def test_a_metric_that_changed_its_direction_begins_anew() -> None:
    line = [stop(0, a=1.0), stop(1, a=1.0), stop(2, higher=False, a=1.0)]
    assert rows_of(line)[0].base is rows_of(line)[0].then is None


def test_the_matrix_has_what_there_is() -> None:
    assert matrix([stop(0, a=1.0), stop(2, a=2.0, b=3.0)]) == {"a": {0: 1.0, 2: 2.0}, "b": {2: 3.0}}


@pytest.mark.parametrize(
    ("metric", "checkpoint", "expected"),
    [
        ("mnist", "mnist", True),
        ("mnist/accuracy", "team/mnist", True),
        ("mnist.loss", "mnist.safetensors", True),
        ("mnist:acc", "hf://org/mnist", True),
        ("mnist2", "mnist", False),
        ("accuracy", "mnist", False),
        ("", "", False),
        ("/x", "", False),
    ],
)
def test_a_metric_bears_the_name_of_a_checkpoint(metric: str, checkpoint: str, expected: bool) -> None:
    assert is_of(metric, checkpoint) is expected
