"""Scanning: when the sources are looked at next, and what they saw goes to the intake."""

import time

from .intake import Intake
from .sources import Sources

REST = 4  # times as long as a scan took, however many events come: most of the time is for other work
SOON = 0.05  # seconds


class Scanning:
    """The scans of all sources, on the loop's thread."""

    def __init__(self, sources: Sources, intake: Intake) -> None:
        self.trouble = ""  # why the watched folder cannot be looked at, if so
        self._sources, self._intake = sources, intake
        self.hinted = False  # whether there may be something that was not looked at yet
        self._at: float | None = None  # monotonic seconds: when to look
        self._rested_at = 0.0  # monotonic seconds: before, no event makes it look again

    @property
    def planned(self) -> bool:
        """Whether it is to look again at a certain time."""
        return self._at is not None

    @property
    def patience(self) -> float:
        """Return the seconds until it is to look; without end if no time was set."""
        return float("inf") if self._at is None else max(0.0, self._at - time.monotonic())

    def hint(self) -> None:
        """Look soon, because there may be something new; after a rest, if events come one upon another."""
        self.hinted = True
        self._look_in(self._rested_at - time.monotonic())

    def settles_in(self, seconds: float | None) -> None:
        """Look when something may be quiet."""
        if seconds is not None:
            self._look_in(max(seconds, SOON))

    def _look_in(self, seconds: float) -> None:
        at = time.monotonic() + seconds
        self._at = at if self._at is None else min(at, self._at)

    def look(self) -> None:
        """Look now; what settles is looked at again when it will be quiet."""
        self._at, self.hinted, began = None, False, time.monotonic()
        scan = self._sources.scan()
        self.trouble = scan.trouble
        elsewhere = map(self._sources.sight, self._intake.elsewhere(scan.sightings))
        self.settles_in(self._intake.see([*scan.sightings, *filter(None, elsewhere)], scan.blind))
        now = time.monotonic()
        self._rested_at = now + min(REST * (now - began), self._intake.settings.rescan)
