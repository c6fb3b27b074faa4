"""Retention: for each version, and for its model and its slots apart, what keeps them. A pure plan; `dropping.py` acts on it."""

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from ..state.records import OURS, Files, Move, Tag, Version
from .settings import Settings

HEAD, PARENT, BEFORE = "the head", "the head's parent", "the head before"
FROM, TO, GATED = "a person moved the head from it", "a person moved the head to it", "the newest that passed a gate"
PARTS: tuple[Files, ...] = ("model", "slots")


@dataclass(frozen=True)
class Keep:
    """What the settings say is kept; each counts versions, but for `within`."""

    last: int = 5  # at least 1
    within: float = 0.0  # seconds
    daily: int = 0
    weekly: int = 0
    slots: int = 0  # 0: slots are kept wherever the model is

    @classmethod
    def of(cls, settings: Settings) -> "Keep":
        """Return what these settings say."""
        s = settings
        return cls(s.keep_last, s.keep_within, s.keep_daily, s.keep_weekly, s.keep_slots)

    def most(self, tags: int) -> tuple[int, int]:
        """Return how many models and how many versions' slots are kept at most, besides those younger than `within`.

        Models: those that are counted, both ends of a person's last moves, the tagged ones, the head, the one before it
        and the newest past a gate. Slots: of these, and of the head's parent; or as `slots` says, and the parent's, the
        head's, the one's before it, the one's that a person left last, and those that were made once more.
        """
        models = 3 * self.last + self.daily + self.weekly + tags + 3
        return models, (min(models, self.slots + tags + 3) if self.slots else models) + 1

    def usual(self) -> tuple[int, int]:
        """Return how many models and how many versions' slots there are while one is folded, if all are old and in a line.

        The head and the one before it, which is its parent there, keep both whatever the counts.
        """
        return max(self.last, 2) + 1, max(min(self.slots or self.last, self.last), 2) + 1


@dataclass(frozen=True)
class Fate:
    """Why the parts of one version are kept; a part without a reason may go."""

    version: Version
    model: tuple[str, ...]
    slots: tuple[str, ...]

    def kept_for(self, part: Files) -> tuple[str, ...]:
        """Return why a part is kept."""
        return self.model if part == "model" else self.slots

    @property
    def going(self) -> tuple[Files, ...]:
        """The parts that are there, and that nothing keeps."""
        return tuple(part for part in PARTS if self.version.keeps(part) and not self.kept_for(part))


Rules = Iterable[tuple[str, Iterable[int | None]]]  # reason, numbers of versions


def plan(
    versions: Sequence[Version], moves: Sequence[Move], tags: Sequence[Tag], keep: Keep, now: datetime
) -> list[Fate]:
    """Return what keeps each version that has files, newest first.

    moves: the newest, and those by people, newest first. Counted are only versions whose model is there and undamaged.
    """
    newest = sorted(versions, key=lambda version: -version.number)
    models = _gathered(_models(newest, moves, tags, keep, now))
    slots = _gathered(_slots(newest, moves, models, tags, keep))
    return [Fate(version, models.get(version.number, ()), slots.get(version.number, ())) for version in newest]


def _models(newest: Sequence[Version], moves: Sequence[Move], tags: Sequence[Tag], keep: Keep, now: datetime) -> Rules:
    """Yield which versions keep their models, by reason; the same version for several."""
    sound = [version for version in newest if version.kept]
    people = [move for move in moves if move.by_person][: keep.last]
    yield HEAD, (move.to_version for move in moves[:1])
    yield BEFORE, (move.from_version for move in moves[:1])
    yield FROM, (move.from_version for move in people)
    yield TO, (move.to_version for move in people)
    yield from ((f"tag {tag.name}", [tag.version]) for tag in tags)
    yield GATED, [version.number for version in sound if version.gates][:1]
    yield "keep_last", (version.number for version in sound[: keep.last])
    yield "keep_within", (version.number for version in newest if age(version, now) < keep.within)
    yield "keep_daily", _newest_of_each(lambda version: made(version).date(), sound)[: keep.daily]
    yield "keep_weekly", _newest_of_each(lambda version: made(version).isocalendar()[:2], sound)[: keep.weekly]


def _slots(
    newest: Sequence[Version],
    moves: Sequence[Move],
    models: dict[int, tuple[str, ...]],
    tags: Sequence[Tag],
    keep: Keep,
) -> Rules:
    """Yield which versions keep their slots, by reason: those whose models stay, or only the newest of them.

    Which are the newest depends on neither clock nor tags: no other setting, and no clock, then takes slots from any.
    """
    stays = [version for version in newest if version.model_kept and version.number in models]
    if keep.slots:
        sound = [version.number for version in newest if version.kept and version.slots_kept][: keep.slots]
        yield "keep_slots", (version.number for version in stays if version.number in sound)
    else:
        yield from ((reason, [version.number]) for version in stays for reason in models[version.number])
    yield from ((f"tag {tag.name}", [tag.version]) for tag in tags if OURS.fullmatch(tag.name))  # somebody wanted them
    head = moves[0].to_version if moves else None
    yield HEAD, [head]
    yield PARENT, (version.parent for version in newest if version.number == head)
    yield BEFORE, (move.from_version for move in moves[:1])
    yield FROM, [move.from_version for move in moves if move.by_person][:1]


def _gathered(rules: Rules) -> dict[int, tuple[str, ...]]:
    """Return each version's reasons, each once."""
    found: dict[int, dict[str, None]] = {}
    for reason, numbers in rules:
        for number in numbers:
            if number is not None:
                found.setdefault(number, {})[reason] = None
    return {number: tuple(reasons) for number, reasons in found.items()}


def _newest_of_each(key: Callable[[Version], Hashable], newest: Iterable[Version]) -> list[int]:
    """Return the newest version of each day or week that has one, newest first. Newer is what has the higher number."""
    first: dict[Hashable, int] = {}
    for version in newest:
        first.setdefault(key(version), version.number)
    return list(first.values())


def made(version: Version) -> datetime:
    """Return when a version was made, in UTC."""
    return datetime.fromisoformat(version.created_at).astimezone(UTC)


def age(version: Version, now: datetime) -> float:
    """Return a version's age in seconds; one from the future, before a clock was set back, is new."""
    return max(0.0, (now - made(version)).total_seconds())


def pieces(fates: Iterable[Fate]) -> Iterator[tuple[int, Files]]:
    """Yield what may go: the number of a version, and a part of it; oldest first."""
    for fate in sorted(fates, key=lambda fate: fate.version.number):
        yield from ((fate.version.number, part) for part in fate.going)
