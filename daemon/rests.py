"""Rests: for how long whoever failed is left alone, the longer the more often it failed in a row."""

import time
from dataclasses import dataclass, field

from .disk import RETRY_AFTER

LONGEST = 900.0  # seconds


@dataclass
class Rests:
    """Who rests, by id, in one life of the daemon."""

    _until: dict[int, float] = field(default_factory=dict)  # monotonic seconds
    _failed: dict[int, int] = field(default_factory=dict)  # times in a row

    def begin(self, who: int, at_least: float = 0.0) -> float:
        """Let one rest that failed once more; returns for how many seconds."""
        failed = self._failed[who] = min(self._failed.get(who, 0) + 1, 16)
        seconds = min(max(at_least, RETRY_AFTER * 2.0 ** (failed - 1)), LONGEST)
        self._until[who] = time.monotonic() + seconds
        return seconds

    def left(self, who: int) -> float:
        """Return the seconds that are left of one's rest, 0 if there are none."""
        return max(self._until.get(who, 0.0) - time.monotonic(), 0.0)

    def forget(self, who: int) -> None:
        """Count its failures from nothing: it did what it was to do."""
        self._until.pop(who, None)
        self._failed.pop(who, None)

    def __len__(self) -> int:
        return len(self._until)
