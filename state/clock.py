"""The wall clock, as it is written down."""

from datetime import UTC, datetime, timedelta


def utc_now() -> str:
    """Return the time as it is stored: UTC, ISO 8601, whole milliseconds."""
    return utc_before(timedelta())


def seconds_since(then: str) -> float:
    """Return how long a stored time is past, in seconds; 0 where the clock was set back."""
    return max(0.0, (datetime.now(UTC) - datetime.fromisoformat(then)).total_seconds())


def utc_before(age: timedelta) -> str:
    """Return the time so long ago, as it is stored."""
    return (datetime.now(UTC) - age).isoformat(timespec="milliseconds").replace("+00:00", "Z")
