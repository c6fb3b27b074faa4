"""The laws of what a metric may lose."""

from collections.abc import Mapping
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mergd.plugins.gates.tolerance import Tolerance, best_of
from mergd.state.records import ADMITTED, Metric, Verdict

VALUES = st.floats(-1e6, 1e6)
LOSSES = st.floats(0, 1e3)


def metric(value: float, higher: bool = True) -> dict[str, Metric]:
    return {"a": Metric(value, higher, 10)}


def codes(verdict: Verdict) -> list[str]:
    return [reason.code for reason in verdict.reasons]


def judge(tolerance: Tolerance, now: float, head: float, best: float, higher: bool = True) -> list[str]:
    """Return the codes for a metric, on whichever side of 0 better is."""
    sign = 1 if higher else -1
    draft, before, most = (metric(sign * value, higher) for value in (now, head, best))
    return codes(tolerance.judge(draft, before, most))


@given(VALUES, LOSSES, LOSSES, st.floats(0, 1), st.booleans())
def test_what_is_within_both_tolerances_passes(best: float, drop: float, total: float, part: float, up: bool) -> None:
    tolerance = Tolerance(drop, total)
    head = best - total * part
    now = head - min(drop, total - total * part)
    assert judge(tolerance, now, head, best, up) == []


@given(VALUES, LOSSES, LOSSES, st.floats(1e-3, 1e3), st.booleans())
def test_what_loses_more_than_drop_is_held(head: float, drop: float, total: float, more: float, up: bool) -> None:
    assert "metric-drop" in judge(Tolerance(drop, total), head - drop - more, head, head, up)


@given(VALUES, LOSSES, LOSSES, st.floats(1e-3, 1e3), st.booleans())
def test_what_is_further_below_the_best_is_held(best: float, drop: float, total: float, more: float, up: bool) -> None:
    now = best - total - more
    assert judge(Tolerance(drop, total), now, now, best, up) == ["metric-total-drop"]


@given(VALUES, LOSSES, LOSSES, LOSSES, st.booleans())
def test_nothing_is_held_for_getting_better(head: float, drop: float, total: float, gain: float, up: bool) -> None:
    assert judge(Tolerance(drop, total), head + gain, head, head, up) == []


@given(st.integers(-99, 99), st.integers(1, 9), st.booleans())
def test_decimals_are_what_people_take_them_for(hundredths: int, drop: int, up: bool) -> None:
    head, now = hundredths / 100, (hundredths - drop) / 100  # 0.95 - 0.94 is more than 0.01
    assert judge(Tolerance(drop / 100, 1.0), now, head, head, up) == []


@given(st.floats(1e-6, 10), st.floats(1, 50), st.booleans())
def test_a_hundred_drops_of_half_a_tolerance_are_stopped_at_total_drop(drop: float, ratio: float, up: bool) -> None:
    total = min(drop * ratio, 49 * drop)
    tolerance, sign = Tolerance(drop, total), 1 if up else -1
    way = [metric(0.0, up)]  # what was published
    for _ in range(100):
        draft = metric(way[-1]["a"].value - sign * drop / 2, up)
        verdict = tolerance.judge(draft, way[-1], best_of(way))
        if verdict != ADMITTED:
            break
        way.append(draft)
    assert codes(verdict) == ["metric-total-drop"]
    lost = abs(way[-1]["a"].value)
    assert total - drop / 2 - 1e-6 <= lost <= total * (1 + 1e-6)


def test_a_held_one_says_which_metric_and_by_how_much() -> None:
    before = {"acc": Metric(0.95, True, 10), "loss": Metric(1.0, False, 10), "same": Metric(1.0, True, 10)}
    now = {"acc": Metric(0.85, True, 10), "loss": Metric(1.5, False, 10), "same": Metric(1.0, True, 10)}
    drop, total = Tolerance().judge(now, before, before, "eval", "/watch/a").reasons
    assert drop.found == "loss 1.5, 0.5 above 1; acc 0.85, 0.1 below 0.95, which it is now, by gate eval"
    assert drop.expected == "at most 0.01 (gate.eval.drop)"
    assert total.expected == "at most 0.03 (gate.eval.total_drop)"
    assert "mergd approve /watch/a" in drop.next_step


def test_many_losses_fill_no_message() -> None:
    before: Mapping[str, Metric] = {f"m{k}": Metric(1.0, True, 1) for k in range(1000)}
    now = {name: replace(metric, value=0.0) for name, metric in before.items()}
    assert "and 997 more" in Tolerance().judge(now, before, before).reasons[0].found


@pytest.mark.parametrize("draft", [{}, {"b": Metric(1.0, True, 1)}, {"a": Metric(1.0, False, 1)}])
def test_a_metric_that_the_head_has_must_be_there_in_its_direction(draft: dict[str, Metric]) -> None:
    assert codes(Tolerance().judge(draft, metric(1.0), metric(1.0))) == ["metric-missing"]


def test_a_metric_that_is_new_passes() -> None:
    assert Tolerance().judge(metric(1.0) | {"b": Metric(-1e9, True, 1)}, metric(1.0), metric(1.0)) == ADMITTED


@given(st.lists(VALUES, min_size=1), st.booleans())
def test_the_best_is_the_best(values: list[float], up: bool) -> None:
    best = best_of(metric(value, up) for value in values)
    assert best["a"].value == (max if up else min)(values)
