"""Retention: a table of plans, and what no plan may ever drop."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mergd.daemon.retention import age, to_drop
from mergd.state.records import Move, Totals, Version

NOW = datetime(2026, 1, 1, tzinfo=UTC)
DAY = 86400.0


def version(number: int, days: float = 100.0, slots: bool = True, model: bool = True) -> Version:
    """Return a version that is so many days old."""
    made = (NOW - timedelta(days=days)).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return Version(number, number - 1 or None, "fold", number, "opcm", Totals(), 1.0, "", made,
                   slots_kept=slots, model_kept=model)  # fmt: skip


def moves(*heads: int) -> list[Move]:
    """Return the moves through these heads, newest first as the history gives them."""
    pairs = zip([None, *heads], heads, strict=False)
    return [Move(k, one, other, "", "", "") for k, (one, other) in enumerate(pairs, start=1)][::-1]


def old(*numbers: int) -> list[Version]:
    return [version(number) for number in numbers]


TABLE: dict[str, tuple[list[Version], list[Move], int, float, list[int]]] = {
    "nothing there": ([], [], 5, DAY, []),
    "fewer than are kept": (old(1, 2, 3), moves(1, 2, 3), 5, 0, []),
    "the oldest go first": (old(1, 2, 3, 4), moves(1, 2, 3, 4), 2, 0, [1, 2]),
    "the head stays however old it is": (old(1, 2, 3, 4), moves(1, 2, 3, 4, 1), 1, 0, [2, 3]),
    "where the head was before stays": (old(1, 2, 3, 4), moves(1, 2, 3, 4, 2, 1), 1, 0, [3]),
    "only the last move counts": (old(1, 2, 3, 4), moves(1, 2, 3, 4, 1, 4), 1, 0, [2]),
    "the head's parent stays": (old(1, 2, 3, 4, 5), moves(1, 2, 3, 4, 5, 1, 3), 1, 0, [4]),
    "young ones stay": ([version(1), version(2, 0.5), version(3, 0.4)], moves(1, 2, 3), 1, DAY, [1]),
    "young ones stay, whatever their number": ([version(1, 0.1), version(2), version(3)], moves(2, 3), 1, DAY, []),
    "what is gone already does not go again": (
        [version(1, slots=False, model=False), version(2), version(3), version(4)], moves(3, 4), 1, 0, [2],
    ),
    "half of it gone goes whole": ([version(1, slots=False), *old(2, 3)], moves(2, 3), 1, 0, [1]),
}  # fmt: skip


@pytest.mark.parametrize("case", TABLE)
def test_what_may_go(case: str) -> None:
    versions, moved, keep_last, keep_within, expected = TABLE[case]
    assert to_drop(versions, moved, NOW, keep_last, keep_within) == expected


@given(
    ages=st.lists(st.floats(-2, 20), min_size=1, max_size=12),
    heads=st.lists(st.integers(1, 12), min_size=1, max_size=8),
    keep_last=st.integers(1, 6),
    keep_days=st.floats(0, 10),
)
def test_head_the_one_before_the_newest_and_the_young_are_always_kept(
    ages: list[float], heads: list[int], keep_last: int, keep_days: float
) -> None:
    versions = [version(number, days) for number, days in enumerate(ages, start=1)]
    moved = moves(*(min(head, len(versions)) for head in heads))
    dropped = set(to_drop(versions, moved, NOW, keep_last, keep_days * DAY))
    assert moved[0].to_version not in dropped
    assert moved[0].from_version not in dropped
    assert not dropped & {v.number for v in versions[-keep_last:]}
    assert all(age(v, NOW) >= keep_days * DAY for v in versions if v.number in dropped)
    kept = {v.number for v in versions} - dropped
    assert len([n for n in kept if age(versions[n - 1], NOW) >= keep_days * DAY]) <= keep_last + 3  # it is a bound


@given(ages=st.lists(st.floats(0, 20), min_size=1, max_size=12), keep_last=st.integers(1, 6))
def test_what_was_dropped_is_not_dropped_again(ages: list[float], keep_last: int) -> None:
    versions = [version(number, days) for number, days in enumerate(ages, start=1)]
    moved = moves(*range(1, len(versions) + 1))
    dropped = to_drop(versions, moved, NOW, keep_last, 0.0)
    after = [
        version(v.number, ages[i], v.number not in dropped, v.number not in dropped) for i, v in enumerate(versions)
    ]
    assert to_drop(after, moved, NOW, keep_last, 0.0) == []


def test_a_version_from_the_future_is_new() -> None:
    assert age(version(1, days=-3), NOW) == 0.0
    assert age(version(1, days=1), NOW) == pytest.approx(DAY)
