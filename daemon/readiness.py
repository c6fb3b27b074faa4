"""Readiness: is all there, and does nobody write any more? A pure state machine, one step for each scan of a place.

Nothing but a digest can prove that a copy is whole. Without one, the machine waits until nothing has changed for a while,
and the longer the less it could find out (docs/arrivals.md).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from ..plugins.sources.directory.places import WEIGHTS
from ..plugins.sources.interface import Evidence
from ..state.records import Sighting

State = Literal["settling", "ready", "blocked", "vanished"]


@dataclass(frozen=True)
class Patience:
    """How long nothing may change before a place counts as complete, in seconds."""

    quiet: float  # where the kernel says that nobody writes
    unsure: float  # where it could not be asked, or a file has holes
    network: float  # where it does not see what others do
    marked_only: bool = False  # without a marker or a manifest, for ever


@dataclass(frozen=True)
class Now:
    """The clocks at a scan."""

    monotonic: float  # seconds, by a clock that nobody sets
    wall_ns: int  # nanoseconds, in the clock of the files' times


@dataclass(frozen=True)
class Seen:
    """What one scan found at a place."""

    sighting: Sighting
    evidence: Evidence = field(default_factory=Evidence)
    hashed: Mapping[str, str] = field(default_factory=dict)  # sha256 of listed files; empty where none can be had


@dataclass(frozen=True)
class Readiness:
    """Where a place is on its way; what the next step needs to know of this one."""

    state: State
    waits_for: str = ""  # in words; of what is blocked, the path that we may not read
    seconds: float | None = None  # until it may be ready if nothing changes; None if no clock ends the wait
    fingerprint: str = ""  # of its files
    since: float = 0.0  # monotonic seconds: when these very files were first seen


def step(before: Readiness | None, seen: Seen | None, now: Now, patience: Patience) -> Readiness:
    """Return the state of a place after a scan; `seen` is None if nothing is there any more.

    `ready` says that its headers may be looked at: what they lack makes it settle again.
    """
    if seen is None:
        return Readiness("vanished")
    fingerprint = seen.sighting.fingerprint
    same = before is not None and before.fingerprint == fingerprint
    since = before.since if before is not None and same else now.monotonic
    state, waits_for, seconds = _judged(seen, now, since, patience)
    return Readiness(state, waits_for, seconds, fingerprint, since)


Judged = tuple[State, str, float | None]


def _judged(seen: Seen, now: Now, since: float, patience: Patience) -> Judged:
    evidence = seen.evidence
    if evidence.unreadable:
        return "blocked", evidence.unreadable, None
    if waits_for := _work_going_on(evidence) or _what_a_manifest_lacks(seen):
        return "settling", waits_for, None
    if _vouched_for(seen) or not seen.sighting.stamps:
        return "ready", "", None
    if patience.marked_only:
        return "settling", "a marker or a manifest", None
    return _quiet(seen, now, since, patience)


def _work_going_on(evidence: Evidence) -> str:
    if evidence.unfinished:
        return f"{evidence.unfinished} to be finished"
    return f"nobody to write {evidence.writers[0]}" if evidence.writers else ""


def _what_a_manifest_lacks(seen: Seen) -> str:
    """Return the first listed weight file that is not there, not hashed yet, or not what the manifest says."""
    manifest, weights = seen.evidence.manifest, _weights(seen.sighting)
    for name, digest in seen.evidence.digests.items():
        if name not in weights:
            return f"{name}, which {manifest} lists"
        if name not in seen.hashed:
            return f"{name} to be hashed, for {manifest}"
        if not seen.hashed[name]:
            return f"{name} to be a file that can be hashed, for {manifest}"
        if seen.hashed[name] != digest:
            return f"{name} to have the digest that {manifest} lists"
    return ""


def _vouched_for(seen: Seen) -> bool:
    """Whether somebody says that all is there: by a digest of each weight file, or by a marker and nothing against it."""
    digests, weights = seen.evidence.digests, _weights(seen.sighting)
    return bool(digests and set(weights) <= digests.keys()) or bool(seen.evidence.marker and not seen.evidence.holes)


def _weights(sighting: Sighting) -> tuple[str, ...]:
    return tuple(stamp.name for stamp in sighting.stamps if stamp.name.endswith(WEIGHTS))


def _quiet(seen: Seen, now: Now, since: float, patience: Patience) -> Judged:
    quiet, why = quiet_for(seen.evidence, patience)
    seconds = seconds_to_wait(seen.sighting.changed_ns, now.monotonic - since, now.wall_ns, quiet)
    return ("settling", f"no change for {quiet:g} s{why}", seconds) if seconds > 0 else ("ready", "", None)


def quiet_for(evidence: Evidence, patience: Patience) -> tuple[float, str]:
    """Return how long nothing may change, in seconds, and in words why it is not the shortest time."""
    if evidence.network:
        return max(patience.quiet, patience.network), ": it lies on a network file system"
    if evidence.unasked:
        why = f": whether somebody writes {evidence.unasked[0]} cannot be found out"
        return max(patience.quiet, patience.unsure), why
    if evidence.holes:
        return max(patience.quiet, patience.unsure), f": {evidence.holes[0]} has ranges that nobody has written"
    return patience.quiet, ""


def seconds_to_wait(changed_ns: int, seen_for: float, wall_ns: int, quiet: float) -> float:
    """Return how long files must still stay unchanged; 0 when they are quiet.

    changed_ns, wall_ns: their last change, and the time now, in wall-clock nanoseconds. A file whose last change is
    longer ago than `quiet` need not be watched for it; a change in the future tells of a clock that was set, and then
    only watching counts. seen_for: seconds since these very files were first seen, by a clock that nobody sets.
    """
    waited = seen_for
    age_ns = wall_ns - changed_ns
    if age_ns >= 0:
        waited = max(waited, age_ns / 1e9)
    return max(0.0, quiet - waited)
