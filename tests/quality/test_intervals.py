"""Intervals against a known table of Student's t, against the law itself, and where there is nothing to be unsure of."""

from math import atan, cos, inf, sqrt
from random import Random
from statistics import stdev

import pytest
from quality.intervals import Interval, by_training, paired, quantile, within

# Two-sided 95 %, as every textbook prints it, by degrees of freedom.
TEXTBOOK = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 9: 2.262, 14: 2.145, 29: 2.045, 120: 1.980}


@pytest.mark.parametrize(("freedom", "t"), TEXTBOOK.items())
def test_the_quantiles_are_the_textbooks(freedom: int, t: float) -> None:
    assert quantile(freedom) == pytest.approx(t, abs=6e-4)


def integrated(t: float, freedom: int) -> float:
    """Return the law of Student's t by Simpson's rule, over the angle whose tangent is t / sqrt(freedom)."""

    def area(angle: float, steps: int = 2000) -> float:
        heights = [cos(angle * i / steps) ** (freedom - 1) * (4 if i % 2 else 2) for i in range(1, steps)]
        return angle / steps / 3 * (1.0 + sum(heights) + cos(angle) ** (freedom - 1))

    return area(atan(t / sqrt(freedom))) / area(atan(inf))


@pytest.mark.parametrize("freedom", range(1, 50))
def test_the_law_is_students(freedom: int) -> None:
    for t in (0.1, 1.0, 2.5, 30.0):
        assert within(t, freedom) == pytest.approx(integrated(t, freedom), abs=1e-9)
    for level in (0.5, 0.95, 0.999):
        assert within(quantile(freedom, level), freedom) == pytest.approx(level, abs=1e-12)


def test_an_interval_is_the_textbooks() -> None:
    values = [71.0, 74.0, 73.0, 70.0, 72.0]
    interval = Interval.of(values)
    assert interval.mean == 72.0
    assert interval.half == pytest.approx(2.776445 * stdev(values) / sqrt(5), rel=1e-6)
    assert interval.lower == pytest.approx(72.0 - interval.half)
    assert str(interval) == "72.0 ± 2.0"


def test_an_interval_holds_the_mean_as_often_as_it_says() -> None:
    random = Random(0)
    drawn = [Interval.of([random.gauss(50, 3) for _ in range(5)]) for _ in range(4000)]
    held = sum(interval.lower <= 50 <= interval.mean + interval.half for interval in drawn)
    assert held / len(drawn) == pytest.approx(0.95, abs=0.01)


def test_what_has_no_width_says_of_how_many_draws_it_is() -> None:
    same, single = Interval.of([72.0] * 5), Interval.of([72.0])
    assert (same.half, single.half) == (0.0, inf)
    assert (str(same), str(single)) == ("72.0 (n = 5)", "72.0 (n = 1)")
    assert (same.as_margin(), single.as_margin()) == ("+72.0 (n = 5)", "+72.0 (n = 1)")
    assert Interval.of([-0.01]).as_margin() == "+0.0 (n = 1)"  # and not -0.0


def test_a_margin_is_taken_draw_by_draw() -> None:
    """Two methods that go up and down together differ surely, although their own intervals overlap."""
    theirs = {"101": 60.0, "102": 70.0, "103": 80.0}
    ours = {"103": 82.0, "101": 61.0, "102": 71.5, "104": 0.0}
    margin = paired(ours, theirs)
    assert margin is not None
    assert (margin.mean, margin.n) == (1.5, 3)
    assert margin.half == pytest.approx(4.302653 * 0.5 / sqrt(3), rel=1e-6)
    assert margin.as_margin() == "+1.5 (at least +0.3)"
    assert Interval.of(list(ours.values())[:3]).lower < Interval.of(list(theirs.values())).mean


def test_methods_without_a_draw_in_common_have_no_margin() -> None:
    assert paired({"101": 1.0}, {"102": 2.0}) is None


def test_orders_of_one_training_are_one_draw() -> None:
    """A rule that knows no order gives its figure again: that says nothing of another training."""
    drawn = {"101-101": 60.0, "101-104": 62.0, "102-102": 70.0, "102-105": 70.0, "103-103": 80.0}
    assert by_training(drawn) == [61.0, 70.0, 80.0]
    margin = paired({draw: value + 1 for draw, value in drawn.items()}, drawn)
    assert margin is not None
    assert (margin.mean, margin.n) == (1.0, 3)
