"""The wall clock, as it is written down."""

from datetime import UTC, datetime


def utc_now() -> str:
    """Return the time as it is stored: UTC, ISO 8601, whole milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
