"""Scanning: when the source is looked at next, and what it saw goes to the intake."""

import logging
import time

from ..plugins.sources.interface import Source
from ..state.errors import MergdError, Unavailable
from .intake import Intake

log = logging.getLogger(__name__)

REST = 4  # times as long as a scan took, however many events come: most of the time is for other work
SOON = 0.05  # seconds


class Scanning:
    """The scans of one source, on the loop's thread."""

    def __init__(self, source: Source, intake: Intake) -> None:
        self.trouble = ""  # why it cannot look, if so
        self._source, self._intake = source, intake
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
        self._at, began = None, time.monotonic()
        try:
            scan = self._source.scan(None)
        except Unavailable as error:
            self.trouble = str(error)
            log.warning("%s", error)
        except MergdError:
            raise
        except Exception as error:  # another package's source: a later scan may do better
            self.trouble = f"the source {self._source.name} failed: {type(error).__name__}: {error}"
            log.error("%s", self.trouble, exc_info=error)
        else:
            self.trouble = ""
            elsewhere = map(self._source.sight, self._intake.elsewhere(scan.sightings))
            self.settles_in(self._intake.see([*scan.sightings, *filter(None, elsewhere)]))
        now = time.monotonic()
        self._rested_at = now + min(REST * (now - began), self._intake.settings.rescan)
