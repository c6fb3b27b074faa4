"""Readiness as a table: what was seen, for how long, and what the clocks say."""

import pytest

from mergd.daemon.readiness import seconds_to_wait
from mergd.state.records import FileStamp, Sighting

NOW = 1_000_000_000_000_000_000  # wall-clock nanoseconds
SECOND = 10**9


def sighting(*changed: float, mtime: float | None = None) -> Sighting:
    """Return a sighting of files whose inodes changed so many seconds before now."""
    stamps = tuple(
        FileStamp(f"{k}.safetensors", 1, k, 100, NOW - int((mtime if mtime is not None else ago) * SECOND),
                  NOW - int(ago * SECOND))
        for k, ago in enumerate(changed)
    )  # fmt: skip
    return Sighting("directory", "/watch/a", "a", stamps)


TABLE = {
    "just written, just seen": (sighting(0), 0.0, 5.0),
    "seen for a while": (sighting(0), 3.0, 2.0),
    "seen for long enough": (sighting(0), 5.0, 0.0),
    "old when it was first seen": (sighting(60), 0.0, 0.0),
    "not quite old enough": (sighting(3), 0.0, 2.0),
    "the longer of both counts": (sighting(3), 4.0, 1.0),
    "the newest of several files counts": (sighting(60, 1, 30), 0.0, 4.0),
    "a time set back by hand does not count": (sighting(1, mtime=9999), 0.0, 4.0),
    "a time in the future of the file's clock": (sighting(-60), 2.0, 3.0),
    "a time in the future, watched for long enough": (sighting(-60), 5.0, 0.0),
    "nothing there that could still be written": (sighting(), 0.0, 0.0),
}


@pytest.mark.parametrize("case", TABLE)
def test_how_long_is_still_to_wait(case: str) -> None:
    seen, seen_for, expected = TABLE[case]
    assert seconds_to_wait(seen, seen_for, NOW, 5.0) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("case", TABLE)
def test_nothing_is_waited_for_where_quiet_is_zero(case: str) -> None:
    seen, seen_for, _ = TABLE[case]
    assert seconds_to_wait(seen, seen_for, NOW, 0.0) == 0.0
