"""Replaying: from which kept version, and by repeating which causes, is a state of the model reached? Pure plans."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from ..state.errors import Unavailable
from ..state.records import Version

Get = Callable[[int], Version]  # a version by its number
Recipe = Callable[
    [int], Sequence[int]
]  # the checkpoints that are in the model at a version, in the order of their folds


Alike = Callable[[Version, Version], bool]
Act = Literal["fold", "remove", "keep", "merge"]


@dataclass(frozen=True)
class Step:
    """One cause to repeat."""

    act: Act
    checkpoint: int | None = None  # id of its row; none where the slots are only read, or many are merged at once
    makes: int | None = None  # the version whose slots must come of it, byte for byte; none where the state is new
    share: float = 1.0  # what the checkpoint counts
    method: Mapping[str, Any] = field(default_factory=dict)  # by which it is done, as versions have it
    merged: tuple[tuple[int, float], ...] = ()  # of a re-merge: the rows, and what each counts

    @property
    def rows(self) -> tuple[int, ...]:
        """The rows whose sources it needs, all at once."""
        return (self.checkpoint,) if self.checkpoint else tuple(row for row, _ in self.merged)


@dataclass(frozen=True)
class Route:
    """A version whose slots are there, and the steps from it."""

    start: int | None  # none: from nothing
    steps: tuple[Step, ...] = ()

    @property
    def checkpoints(self) -> tuple[int, ...]:
        """The rows whose sources are needed."""
        return tuple(row for step in self.steps for row in step.rows)


def route_to(number: int, get: Get, anew: bool = False) -> Route:
    """Return how a version's slots are reached: from it, or its nearest ancestor, that has them, causes repeated.

    anew: not from its own.
    """
    steps: list[Step] = []
    at: int | None = number
    while at is not None and (not sound(get(at)) or (anew and at == number)):
        version = get(at)
        steps[:0] = _causes(version)
        at = _origin(version)
    return Route(at, tuple(steps))


def _origin(version: Version) -> int | None:
    """Return the version that this one was made of; none: of nothing but checkpoints."""
    if version.cause == "re-merge":
        return None
    onto: int | None = version.arguments["onto"] if by_replay(version) else version.parent
    return onto


def _causes(version: Version) -> list[Step]:
    """Return the steps that made a version of what it was made from; the last makes it. Raises Unavailable."""
    if not version.is_known:
        raise unknown(version)
    number, method, said = version.number, version.method, version.arguments
    if version.cause == "read-out":
        return [Step("keep", None, number, method=method)]
    if version.cause == "re-merge":
        return [
            Step("merge", None, number, method=method, merged=tuple(zip(said["folds"], said["shares"], strict=True)))
        ]
    if version.checkpoint is not None:
        return [Step("fold", version.checkpoint, number, share_of(version), method)]
    if not by_replay(version):
        return [Step("remove", version.removed, number, share_of(version), method)]
    folds = [Step("fold", row, None, share, method) for row, share in _shared(said)]
    return [*folds[:-1], *(replace(last, makes=number) for last in folds[-1:])]


def _shared(said: Mapping[str, Any]) -> list[tuple[int, float]]:
    """Return the folds of a removal by replay, and what each counts."""
    return list(zip(said["folds"], said.get("shares") or [1.0] * len(said["folds"]), strict=True))


def share_of(version: Version) -> float:
    """Return what counted that a version's cause folded or took out."""
    return float(version.arguments.get("share", 1.0))


def shares_at(number: int | None, get: Get) -> dict[int, float]:
    """Return what each checkpoint counts that is in the model at a version: in another line it may count otherwise."""
    shares: dict[int, float] = {}
    while number is not None:
        version = get(number)
        if version.checkpoint is not None:
            shares.setdefault(version.checkpoint, share_of(version))
        if version.cause == "re-merge":  # which says it of all before
            return dict(_shared(version.arguments)) | shares
        number = version.parent
    return shares


def reachable(versions: Iterable[Version], found: Callable[[int], bool]) -> set[int]:
    """Return the versions that can be published once more, from their slots or by repeating causes. versions: all, oldest first.

    found: whether the source of a checkpoint is there, by its id.
    """
    there: set[int | None] = {None}  # whose slots are there, or can be made once more
    published: set[int] = set()
    for version in versions:
        again = (
            version.is_known
            and _origin(version) in there
            and all(map(found, Route(None, tuple(_causes(version))).checkpoints))
        )
        if sound(version) or again:
            there.add(version.number)
        if again or (sound(version) and not version.read_at_once):
            published.add(version.number)
    return published


def route_without(
    checkpoint: int, head: Version, kept: Iterable[Version], recipe: Recipe, get: Get, alike: Alike
) -> Route:
    """Return how the model without one checkpoint is reached by folding the others, from as late a version as can be.

    kept: the versions whose files are there. alike: whether what two versions keep is folded in the same way.
    """
    shares = shares_at(head.number, get)
    target = tuple(
        Step("fold", row, None, shares[row], head.method) for row in recipe(head.number) if row != checkpoint
    )
    starts = [
        (made, version.number)
        for version in kept
        if alike(version, head) and (made := _prefix(version, target, recipe, get))
    ]
    length, start = max(starts, default=(0, None))
    return Route(start, target[length:])


def _prefix(version: Version, target: Sequence[Step], recipe: Recipe, get: Get) -> int:
    """Return how many checkpoints a version has if its slots are what the first so many steps give; else 0."""
    made = tuple(recipe(version.number))
    if not sound(version) or made != tuple(step.checkpoint for step in target[: len(made)]):
        return 0
    shares = shares_at(version.number, get)
    alike = all(shares[row] == step.share for row, step in zip(made, target, strict=False))
    return len(made) if alike and _only_folds(version, get) else 0


def _only_folds(version: Version, get: Get) -> bool:
    """Whether nothing was ever subtracted on the way to a version: what rounding leaves of it is not in a fold of the rest."""
    at: int | None = version.number
    while at is not None:
        now = get(at)
        if now.removed is not None and not by_replay(now):
            return False
        at = _origin(now)
    return True


def unknown(version: Version) -> Unavailable:
    """Return what is said where the cause of a version is needed that a rebuild could not find out."""
    found = f"what made {version} is not known: its manifest is damaged"
    return Unavailable(found, "bring its manifest.json back from a backup, then: mergd rebuild --force")


def by_replay(version: Version) -> bool:
    """Whether a version was made by folding, once more, those that came after a checkpoint that was taken out."""
    return version.arguments.get("how") == "replay"


def sound(version: Version) -> bool:
    """Whether a version's slots are there, and nobody knows of any damage."""
    return version.slots_kept and not version.harmed("slots")
