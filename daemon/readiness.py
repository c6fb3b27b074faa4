"""Readiness: has a place been quiet for long enough? A pure function of what was seen and when."""

from ..state.records import Sighting


def seconds_to_wait(sighting: Sighting, seen_for: float, wall_ns: int, quiet: float) -> float:
    """Return how long its files must still stay unchanged; 0 when it is quiet.

    seen_for: seconds since these very files were first seen, by a clock that nobody sets.
    wall_ns: the time now, in the clock of the files' times. A file whose last change is longer ago than `quiet` need
    not be watched for it; a change in the future tells of a clock that was set, and then only watching counts.
    """
    if not sighting.stamps:
        return 0.0  # nothing there that could still be written; what is missing is said by the format
    waited = seen_for
    age_ns = wall_ns - sighting.changed_ns
    if age_ns >= 0:
        waited = max(waited, age_ns / 1e9)
    return max(0.0, quiet - waited)
