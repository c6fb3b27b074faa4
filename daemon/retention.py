"""Retention: which versions' files may go. A pure plan; the worker carries it out."""

from collections.abc import Sequence
from datetime import UTC, datetime

from ..state.records import Move, Version


def to_drop(
    versions: Sequence[Version], moves: Sequence[Move], now: datetime, keep_last: int, keep_within: float
) -> list[int]:
    """Return the numbers of the versions whose files may go, oldest first.

    Kept are the head, its parent (onto which a replacement is folded), where the head was before, the `keep_last`
    newest versions, and those younger than `keep_within` seconds. `moves` come newest first.
    """
    keep = {version.number for version in sorted(versions, key=lambda v: -v.number)[:keep_last]}
    keep |= {version.number for version in versions if age(version, now) < keep_within}
    if moves:
        head = moves[0].to_version
        keep |= {head, moves[0].from_version or head, *(v.parent for v in versions if v.number == head and v.parent)}
    return [v.number for v in versions if (v.slots_kept or v.model_kept) and v.number not in keep]


def age(version: Version, now: datetime) -> float:
    """Return a version's age in seconds; one from the future, before a clock was set back, is new."""
    made = datetime.fromisoformat(version.created_at).astimezone(UTC)
    return max(0.0, (now - made).total_seconds())
