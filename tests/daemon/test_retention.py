"""Retention: a table of plans, and laws that hold for every plan."""

from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mergd.daemon.retention import FROM, GATED, TO, Fate, Keep, age, pieces, plan
from mergd.state.records import Files, Move, Tag, Totals, Version

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)  # a Thursday
DAY = 86400.0
LAST = Keep(last=1)


def version(number: int, days: float = 100.0, slots: bool = True, model: bool = True, **more: object) -> Version:
    """Return a version that is so many days old."""
    made = (NOW - timedelta(days=days)).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    plain = Version(number, number - 1 or None, "fold", number, "opcm", Totals(), 1.0, "", made,
                    slots_kept=slots, model_kept=model)  # fmt: skip
    return replace(plain, **more)  # type: ignore[arg-type]


def moves(*heads: int) -> list[Move]:
    """Return the moves through these heads, newest first as the history gives them; a negative one is by a person."""
    pairs = zip([None, *heads], heads, strict=False)
    return [
        Move(k, abs(one) if one else None, abs(to), "", "rollback" if to < 0 else "fold", "")
        for k, (one, to) in enumerate(pairs, start=1)
    ][::-1]


def tags(*numbers: int) -> list[Tag]:
    return [Tag(f"t{k}", number, "", "") for k, number in enumerate(numbers)]


def old(*numbers: int) -> list[Version]:
    return [version(number) for number in numbers]


def gone(fates: Iterable[Fate]) -> tuple[list[int], list[int]]:
    """Return the numbers of the versions whose models, and of those whose slots may go."""
    found = list(pieces(fates))
    return [n for n, part in found if part == "model"], [n for n, part in found if part == "slots"]


WHOLE = list[int]  # of these, both parts
TABLE: dict[str, tuple[list[Version], list[Move], list[Tag], Keep, WHOLE | tuple[list[int], list[int]]]] = {
    "nothing there": ([], [], [], Keep(), []),
    "fewer than are kept": (old(1, 2, 3), moves(1, 2, 3), [], Keep(5), []),
    "the oldest go first": (old(1, 2, 3, 4), moves(1, 2, 3, 4), [], Keep(2), [1, 2]),
    "the head stays however old it is": (old(1, 2, 3, 4), moves(1, 2, 3, 4, 1), [], LAST, [2, 3]),
    "where the head was before stays": (old(1, 2, 3, 4), moves(1, 2, 3, 4, 2, 1), [], LAST, [3]),
    "of folds only the last move counts": (old(1, 2, 3, 4), moves(1, 2, 3, 4, 1, 4), [], LAST, ([2, 3], [2])),
    "of the head's parent the slots stay": (old(1, 2, 3, 4, 5), moves(1, 2, 3, 4, 5, 1, 3), [], LAST, ([2, 4], [4])),
    "both ends of a person's move stay": (old(*range(1, 9)), moves(5, -2, 7, 8), [], LAST, [1, 3, 4, 6]),
    "of a person's moves so many count as versions do": (
        old(*range(1, 10)), moves(6, -1, -2, -4, 8, 9), [], Keep(2), ([3, 5, 6, 7], [3, 5, 6, 7]),
    ),
    "tagged ones stay": (old(1, 2, 3, 4, 5), moves(4, 5), tags(2, 2, 1), LAST, [3]),
    "young ones stay": ([version(1), version(2, 0.5), version(3, 0.4)], moves(2, 3), [], Keep(1, DAY), [1]),
    "young ones stay, whatever their number": ([version(1, 0.1), *old(2, 3)], moves(2, 3), [], Keep(1, DAY), []),
    "what is gone already does not go again": (
        [version(1, slots=False, model=False), *old(2, 3, 4)], moves(3, 4), [], LAST, [2],
    ),
    "half of it gone goes whole": ([version(1, slots=False), *old(2, 3)], moves(2, 3), [], LAST, ([1], [])),
    "what has lost its model does not count among the newest": (
        [*old(1, 2, 3), version(4, model=False), version(5)], moves(3, 5), [], Keep(2), ([1, 2], [1, 2]),
    ),
    "the newest of each day": (
        [version(1, 4.2), version(2, 4.1), version(3, 2.2), version(4, 2.1), version(5, 1), *[version(6, 0)]],
        moves(5, 6), [], Keep(1, daily=4), [1, 3],
    ),
    "the newest of each week": (
        [version(1, 16), version(2, 15), version(3, 9), version(4, 8), version(5, 2), version(6, 1)],
        moves(5, 6), [], Keep(1, weekly=2), [1, 2, 3],
    ),
    "a day without a version is none": (
        [version(1, 90), version(2, 60), version(3, 30), version(4, 0)], moves(3, 4), [], Keep(1, daily=3), [1],
    ),
    "of gated ones the newest": (
        [version(1, gates=("a",)), version(2, gates=("a",)), *old(3, 4, 5)], moves(4, 5), [], LAST, [1, 3],
    ),
    "a damaged one past a gate does not count": (
        [*(version(n, gates=("a",)) for n in (1, 2)), version(3, gates=("a",), damaged="a file"), *old(4, 5)],
        moves(4, 5), [], LAST, [1, 3],
    ),
    "a damaged one does not count for slots": (
        [*old(1, 2, 3, 4), version(5, damaged="a file"), version(6)],
        moves(4, 6), tags(5), Keep(5, slots=3), ([], [1, 2]),
    ),
    "slots without a model are of no use to the counts": (
        [version(1, 0.1, model=False), *old(2, 3)], moves(2, 3), [], Keep(1, DAY), ([], [1]),
    ),
    "slots of the newest alone": (
        old(1, 2, 3, 4, 5, 6), moves(5, 6), tags(1), Keep(4, slots=3), ([2], [1, 2, 3]),
    ),
    "slots that a way back needs": (
        old(1, 2, 3, 4, 5, 6), moves(2, -1, 5, 3), [], Keep(6, slots=1), ([], [1, 4]),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", TABLE)
def test_what_may_go(case: str) -> None:
    versions, moved, tagged, keep, expected = TABLE[case]
    found = gone(plan(versions, moved, tagged, keep, NOW))
    assert found == (expected if isinstance(expected, tuple) else (expected, expected))


def test_each_version_has_all_the_reasons_that_keep_it() -> None:
    versions = [version(1), version(2, gates=("a",)), version(3, 0.5)]
    five, four, three = plan([*versions, version(4, 0.1)], moves(3, -2, 4), tags(4), Keep(2, DAY, 1, 0), NOW)[:3]
    assert five.model == ("the head", "tag t0", "keep_last", "keep_within", "keep_daily")
    assert four.model == (FROM, "keep_last", "keep_within")
    assert three.model == ("the head before", TO, GATED)
    assert five.slots == five.model


# --------------------------------------------------------------------------------------------------------------- laws

COUNTS = st.integers(0, 4)
KEEPS = st.builds(Keep, st.integers(1, 5), st.floats(0, 10 * DAY), COUNTS, COUNTS, st.integers(0, 5))


@st.composite
def histories(draw: st.DrawFn) -> tuple[list[Version], list[Move], list[Tag]]:
    """Draw versions in any state and of any age, moves among them, and tags."""
    count = draw(st.integers(1, 14))
    flag = st.sampled_from([True, True, True, False])
    versions = [
        version(number, draw(st.floats(-2, 40)), draw(flag), draw(flag),
                parent=draw(st.none() | st.integers(1, number - 1)) if number > 1 else None,
                gates=draw(st.sampled_from([(), (), ("a",)])), damaged=draw(st.sampled_from([None, None, "a file"])))
        for number in range(1, count + 1)
    ]  # fmt: skip
    numbers = st.integers(1, count)
    heads = draw(st.lists(st.tuples(numbers, st.sampled_from([1, 1, -1])), min_size=1, max_size=10))
    return versions, moves(*(n * sign for n, sign in heads)), tags(*draw(st.lists(numbers, max_size=3)))


def stays(fates: Iterable[Fate], part: Files) -> set[int]:
    """Return the numbers of the versions that have this part, and keep it."""
    return {fate.version.number for fate in fates if fate.version.keeps(part) and part not in fate.going}


def within(smaller: list[Fate], larger: list[Fate]) -> bool:
    """Whether one plan keeps whatever another one does."""
    return all(stays(smaller, part) <= stays(larger, part) for part in ("model", "slots"))


@given(histories(), KEEPS)
def test_what_is_named_or_near_the_head_always_stays(
    history: tuple[list[Version], list[Move], list[Tag]], keep: Keep
) -> None:
    versions, moved, tagged = history
    dropped_models, dropped_slots = map(set, gone(plan(versions, moved, tagged, keep, NOW)))
    last, people = moved[0], [move for move in moved if move.why == "rollback"]
    both = {last.to_version, last.from_version, *(move.from_version for move in people[:1])}
    assert not both & (dropped_models | dropped_slots)
    assert not {versions[last.to_version - 1].parent} & dropped_slots
    assert not {tag.version for tag in tagged} & dropped_models
    assert (
        not {number for move in people[: keep.last] for number in (move.from_version, move.to_version)} & dropped_models
    )
    sound = [v for v in versions if v.model_kept and not v.damaged]
    assert not {v.number for v in sound[-keep.last :]} & dropped_models
    assert not {v.number for v in [v for v in sound if v.gates][-1:]} & dropped_models
    assert not {v.number for v in versions if age(v, NOW) < keep.within} & dropped_models


@given(histories(), KEEPS)
def test_what_was_decided_once_is_decided_for_good(
    history: tuple[list[Version], list[Move], list[Tag]], keep: Keep
) -> None:
    versions, moved, tagged = history
    models, slots = gone(plan(versions, moved, tagged, keep, NOW))
    after = [
        replace(
            v, model_kept=v.model_kept and v.number not in models, slots_kept=v.slots_kept and v.number not in slots
        )
        for v in versions
    ]
    assert gone(plan(after, moved, tagged, keep, NOW)) == ([], [])


@given(histories(), KEEPS, KEEPS)
def test_a_setting_that_keeps_more_drops_nothing_more(
    history: tuple[list[Version], list[Move], list[Tag]], one: Keep, other: Keep
) -> None:
    larger = Keep(
        max(one.last, other.last), max(one.within, other.within), max(one.daily, other.daily),
        max(one.weekly, other.weekly), 0 if 0 in (one.slots, other.slots) else max(one.slots, other.slots),
    )  # fmt: skip
    assert within(plan(*history, one, NOW), plan(*history, larger, NOW))


@given(histories(), KEEPS)
def test_what_is_kept_has_a_bound(history: tuple[list[Version], list[Move], list[Tag]], keep: Keep) -> None:
    versions, moved, tagged = history
    fates = plan(versions, moved, tagged, keep, NOW)
    models, slots = keep.most(len({tag.version for tag in tagged}))
    young = {v.number for v in versions if age(v, NOW) < keep.within}
    assert len(stays(fates, "model") - young) <= models
    assert len(stays(fates, "slots") - (set() if keep.slots else young)) <= slots


@given(histories(), KEEPS, st.floats(0, 1000))
def test_a_clock_that_is_set_back_drops_nothing_more(
    history: tuple[list[Version], list[Move], list[Tag]], keep: Keep, days: float
) -> None:
    assert within(plan(*history, keep, NOW), plan(*history, keep, NOW - timedelta(days=days)))


@given(histories(), KEEPS, st.data())
def test_a_damaged_version_is_no_reason_to_drop_another(
    history: tuple[list[Version], list[Move], list[Tag]], keep: Keep, data: st.DataObject
) -> None:
    versions, moved, tagged = history
    broken = data.draw(st.sampled_from(versions)).number
    after = [replace(v, damaged="a file") if v.number == broken else v for v in versions]
    before, now = (plan(these, moved, tagged, keep, NOW) for these in (versions, after))
    for part in ("model", "slots"):
        assert stays(before, part) - {broken} <= stays(now, part)


@given(st.integers(2, 12), st.integers(1, 6), st.integers(0, 6))
def test_a_line_of_old_versions_takes_what_init_says(count: int, last: int, slots: int) -> None:
    keep = Keep(last, slots=slots)
    fates = plan(old(*range(1, count + 1)), moves(*range(1, count + 1)), [], keep, NOW)
    usual = [number - 1 for number in keep.usual()]  # one less: none is being folded
    assert [len(stays(fates, "model")), len(stays(fates, "slots"))] == [min(count, number) for number in usual]


def test_a_version_from_the_future_is_new() -> None:
    assert age(version(1, days=-3), NOW) == 0.0
    assert age(version(1, days=1), NOW) == pytest.approx(DAY)
