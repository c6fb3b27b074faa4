"""Replaying as a table: from where, and by which steps, a version is reached, or the model without a checkpoint."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from mergd.daemon.replaying import Route, Step, route_to, route_without, shares_at
from mergd.state.records import Totals, Version


def folded(number: int, parent: int | None = -1, row: int = 0) -> Version:
    """Return version N, which folded checkpoint N (or another row) onto version N - 1 (or another)."""
    parent = number - 1 or None if parent == -1 else parent
    return Version(number, parent, "fold", row or number, "opcm", Totals(), 1.0, "", "")


def removed(number: int, row: int, **arguments: Any) -> Version:
    """Return version N, which took a checkpoint out of version N - 1."""
    return replace(folded(number), cause="remove", checkpoint=None, removed=row, arguments=arguments)


def subtracted(number: int, row: int) -> Version:
    return removed(number, row, how="subtraction")


def replayed(number: int, row: int, onto: int | None, *folds: int) -> Version:
    return removed(number, row, how="replay", onto=onto, folds=list(folds))


def dropped(*versions: Version) -> list[Version]:
    return [replace(version, slots_kept=False) for version in versions]


def fold(row: int, makes: int | None = None) -> Step:
    return Step("fold", row, makes)


LINE = [folded(1), folded(2), folded(3), folded(4)]

# the history; the version to reach -> the route
TO: dict[str, tuple[list[Version], int, Route]] = {
    "what is there": (LINE, 3, Route(3)),
    "from its parent": ([*LINE[:2], *dropped(LINE[2])], 3, Route(2, (fold(3, 3),))),
    "from the nearest": ([LINE[0], *dropped(*LINE[1:])], 3, Route(1, (fold(2, 2), fold(3, 3)))),
    "from nothing": (dropped(*LINE), 2, Route(None, (fold(1, 1), fold(2, 2)))),
    "another line": ([*LINE[:2], *dropped(*LINE[2:], folded(5, parent=2))], 5, Route(2, (fold(5, 5),))),
    "a subtraction is repeated": (
        [*LINE, *dropped(subtracted(5, 2), folded(6))], 6, Route(4, (Step("remove", 2, 5), fold(6, 6))),
    ),
    "a replay is repeated from where it began": (
        [LINE[0], *dropped(*LINE[1:], replayed(5, 2, 1, 3, 4))], 5, Route(1, (fold(3), fold(4, 5))),
    ),
    "what came after a replay": (
        [LINE[0], *dropped(*LINE[1:], replayed(5, 2, 1, 3, 4), folded(6))], 6,
        Route(1, (fold(3), fold(4, 5), fold(6, 6))),
    ),
    "a replay of nothing is what it began from": (
        [*LINE[:3], *dropped(LINE[3], replayed(5, 4, 3))], 5, Route(3),
    ),
    "and that may be nothing": ([*dropped(LINE[0], replayed(2, 1, None))], 2, Route(None)),
    "what is damaged is not begun from": (
        [LINE[0], replace(LINE[1], damaged="versions/000002/slots-1"), *dropped(LINE[2])], 3, Route(1, (fold(2, 2), fold(3, 3))),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", TO)
def test_how_a_version_is_reached(case: str) -> None:
    versions, number, expected = TO[case]
    assert route_to(number, {version.number: version for version in versions}.__getitem__) == expected


def recipe(versions: Sequence[Version], number: int) -> tuple[int, ...]:
    """Return the checkpoints that are in the model at a version, in order, as the history tells."""
    by_number, line = {version.number: version for version in versions}, list[Version]()
    at: int | None = number
    while at is not None:
        line.insert(0, by_number[at])
        at = by_number[at].parent
    out = {version.removed for version in line}
    return tuple(v.checkpoint for v in line if v.checkpoint is not None and v.checkpoint not in out)


# the history, whose last version is the head; the checkpoint -> the route
WITHOUT: dict[str, tuple[list[Version], int, Route]] = {
    "the last": (LINE, 4, Route(3)),
    "one in the middle": (LINE, 2, Route(1, (fold(3), fold(4)))),
    "the first": (LINE, 1, Route(None, (fold(2), fold(3), fold(4)))),
    "the only one": (LINE[:1], 1, Route(None)),
    "where the slots before it were dropped": ([*dropped(LINE[0]), *LINE[1:]], 2, Route(None, (fold(1), fold(3), fold(4)))),
    "after another one was taken out": (
        [*LINE, replayed(5, 2, 1, 3, 4), folded(6)], 6, Route(5),
    ),
    "one that came before what was taken out": (
        [*LINE, replayed(5, 2, 1, 3, 4)], 3, Route(1, (fold(4),)),
    ),
    "another line has what is wanted": (
        [*LINE[:3], folded(4, parent=1, row=3), folded(5, parent=3, row=4)], 2, Route(4, (fold(4),)),
    ),
    "what was subtracted from is not begun from": (
        [folded(1), folded(2), subtracted(3, 1), folded(4)], 4, Route(None, (fold(2),)),
    ),
    "nor what is damaged": (
        [LINE[0], replace(LINE[1], damaged="versions/000002/slots-1"), *LINE[2:]], 3, Route(1, (fold(2), fold(4))),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WITHOUT)
def test_how_the_model_without_a_checkpoint_is_reached(case: str) -> None:
    versions, checkpoint, expected = WITHOUT[case]
    get = {version.number: version for version in versions}.__getitem__
    assert without(checkpoint, versions, get) == expected


def without(checkpoint: int, versions: Sequence[Version], get: Callable[[int], Version]) -> Route:
    """Return the route to the last version without a checkpoint."""
    alike = lambda one, other: one.method == other.method
    return route_without(checkpoint, versions[-1], versions, lambda n: recipe(versions, n), get, alike)


# -------------------------------------------------------------------------------------------------------------- shares


def counts(version: Version, share: float) -> Version:
    """Return a version whose cause counts so much."""
    return replace(version, arguments={**version.arguments, "share": share})


WEIGHTED = [counts(folded(1), 2.0), folded(2), counts(folded(3), 0.5)]


def numbered(versions: Sequence[Version]) -> Callable[[int], Version]:
    return {version.number: version for version in versions}.__getitem__


def test_a_fold_is_repeated_with_what_it_counted() -> None:
    route = route_to(3, numbered(dropped(*WEIGHTED)))
    assert [step.share for step in route.steps] == [2.0, 1.0, 0.5]


def test_so_are_a_subtraction_and_a_replay() -> None:
    versions = [*WEIGHTED, *dropped(counts(subtracted(4, 1), 2.0))]
    assert route_to(4, numbered(versions)).steps == (Step("remove", 1, 4, 2.0),)
    again = replace(
        replayed(4, 2, None, 1, 3), arguments={"how": "replay", "onto": None, "folds": [1, 3], "shares": [2.0, 0.5]}
    )
    assert route_to(4, numbered([*WEIGHTED, *dropped(again)])).steps == (
        Step("fold", 1, None, 2.0), Step("fold", 3, 4, 0.5),
    )  # fmt: skip


def test_without_one_the_others_count_what_they_did() -> None:
    route = without(1, WEIGHTED, numbered(WEIGHTED))
    assert route == Route(None, (fold(2), Step("fold", 3, None, 0.5)))


def test_a_line_in_which_one_counted_otherwise_is_not_begun_from() -> None:
    versions = [*LINE[:3], counts(folded(4, parent=1, row=3), 2.0), folded(5, parent=3, row=4)]
    route = without(2, versions, numbered(versions))
    assert route == Route(1, (fold(3), fold(4)))


def test_one_that_was_folded_again_counts_what_it_counted_last() -> None:
    versions = [counts(folded(1), 2.0), subtracted(2, 1), counts(folded(3, row=1), 4.0)]
    assert shares_at(3, numbered(versions)) == {1: 4.0}
    assert shares_at(1, numbered(versions)) == {1: 2.0}
