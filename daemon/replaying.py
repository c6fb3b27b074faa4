"""Replaying: from which kept version, and by repeating which causes, is a state of the model reached? Pure plans."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from ..state.errors import Unavailable
from ..state.records import Version

Get = Callable[[int], Version]  # a version by its number
Recipe = Callable[
    [int], Sequence[int]
]  # the checkpoints that are in the model at a version, in the order of their folds


@dataclass(frozen=True)
class Step:
    """One cause to repeat."""

    act: Literal["fold", "remove"]
    checkpoint: int  # id of its row
    makes: int | None = None  # the version whose slots must come of it, byte for byte; none where the state is new
    share: float = 1.0  # what the checkpoint counted when it was folded


@dataclass(frozen=True)
class Route:
    """A version whose slots are there, and the steps from it."""

    start: int | None  # none: from nothing
    steps: tuple[Step, ...] = ()

    @property
    def checkpoints(self) -> tuple[int, ...]:
        """The rows whose sources are needed."""
        return tuple(step.checkpoint for step in self.steps)


def route_to(number: int, get: Get, anew: bool = False) -> Route:
    """Return how a version's slots are reached: from it, or its nearest ancestor, that has them, causes repeated.

    anew: not from its own.
    """
    steps: list[Step] = []
    at: int | None = number
    while at is not None and (not sound(get(at)) or (anew and at == number)):
        version = get(at)
        steps[:0] = _causes(version)
        at = version.arguments["onto"] if by_replay(version) else version.parent
    return Route(at, tuple(steps))


def _causes(version: Version) -> list[Step]:
    """Return the steps that made a version of what it was made from; the last makes it. Raises Unavailable."""
    if not version.is_known:
        raise unknown(version)
    if version.checkpoint is not None:
        return [Step("fold", version.checkpoint, version.number, share_of(version))]
    if not by_replay(version):
        assert version.removed is not None
        return [Step("remove", version.removed, version.number, share_of(version))]
    folds = version.arguments["folds"]
    shares = version.arguments.get("shares", [1.0] * len(folds))
    steps = [Step("fold", checkpoint, None, share) for checkpoint, share in zip(folds, shares, strict=True)]
    return [*steps[:-1], *(replace(last, makes=version.number) for last in steps[-1:])]


def share_of(version: Version) -> float:
    """Return what a version's cause folded or took out counts."""
    return float(version.arguments.get("share", 1.0))


def shares_at(number: int | None, get: Get) -> dict[int, float]:
    """Return what each checkpoint counts that is in the model at a version: as it was folded last."""
    shares: dict[int, float] = {}
    while number is not None:
        version = get(number)
        if version.checkpoint is not None:
            shares.setdefault(version.checkpoint, share_of(version))
        number = version.parent
    return shares


def arguments_of(route: Route) -> dict[str, Any]:
    """Return what must be known of a route to a model without a checkpoint, so that it can be taken once more."""
    steps = route.steps
    if any(step.act == "remove" for step in steps):
        return {"how": "subtraction"} | ({"share": steps[-1].share} if steps[-1].share != 1.0 else {})
    shares = [step.share for step in steps]
    counts = {"shares": shares} if any(share != 1.0 for share in shares) else {}
    return {"how": "replay", "onto": route.start, "folds": list(route.checkpoints)} | counts


def reachable(versions: Iterable[Version], found: Callable[[int], bool]) -> set[int]:
    """Return the versions whose slots are there, or can be made once more. versions: all, oldest first.

    found: whether the source of a checkpoint is there, by its id.
    """
    there: set[int | None] = {None}
    for version in versions:
        before = version.arguments["onto"] if by_replay(version) else version.parent
        again = version.is_known and before in there and all(found(step.checkpoint) for step in _causes(version))
        if sound(version) or again:
            there.add(version.number)
    return {number for number in there if number is not None}


def route_without(checkpoint: int, head: Version, kept: Iterable[Version], recipe: Recipe, get: Get) -> Route:
    """Return how the model without one checkpoint is reached by folding the others, from as late a version as can be.

    kept: the versions whose files are there.
    """
    shares = shares_at(head.number, get)
    target = tuple(Step("fold", row, None, shares[row]) for row in recipe(head.number) if row != checkpoint)
    starts = [(made, version.number) for version in kept if (made := _prefix(version, target, recipe, get))]
    length, start = max(starts, default=(0, None))
    return Route(start, target[length:])


def _prefix(version: Version, target: Sequence[Step], recipe: Recipe, get: Get) -> int:
    """Return how many checkpoints a version has if its slots are what the first so many steps give; else 0."""
    made = tuple(recipe(version.number))
    if not sound(version) or made != tuple(step.checkpoint for step in target[: len(made)]):
        return 0
    shares = shares_at(version.number, get)
    alike = all(shares[step.checkpoint] == step.share for step in target[: len(made)])
    return len(made) if alike and _only_folds(version, get) else 0


def _only_folds(version: Version, get: Get) -> bool:
    """Whether nothing was ever subtracted on the way to a version: what rounding leaves of it is not in a fold of the rest."""
    at: int | None = version.number
    while at is not None:
        now = get(at)
        if now.removed is not None and not by_replay(now):
            return False
        at = now.arguments["onto"] if by_replay(now) else now.parent
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
