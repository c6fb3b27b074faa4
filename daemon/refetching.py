"""Refetching: a source that lies on the Hub alone is brought here again for one step of a task, and deleted after it.

It runs on the folding thread. One comes at a time, so that a replay of any length takes the disk of one checkpoint.
"""

import logging
import shutil
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

from ..plugins.sources.interface import Later
from ..state.errors import Abandoned
from ..state.records import Sighting
from ..state.store import Store
from .progress import Progress
from .settings import Settings

if TYPE_CHECKING:  # the Hub's client takes a second to import, and most merges need none
    from ..plugins.sources.hub.again import Again
    from ..plugins.sources.hub.line import Line

log = logging.getLogger(__name__)

DOING = "its download"
AT_FIRST = 5.0  # seconds that are waited for a Hub that does not answer, before folding goes on meanwhile
MIDWAY = 1000.0  # the same where what is done, or has come, would have to be done again

Of = Callable[[Sighting], Collection[str] | None]
Counting = Callable[[int, Sighting], Collection[str] | None]


class Refetching:
    """Brings the sources of one merge's tasks."""

    def __init__(self, settings: Settings, store: Store) -> None:
        self.settings, self._root = settings, store.spool / "again"
        self.line: Line | None = None  # that a watched namespace has: what the Hub asks of one is meant for the other
        self.keep_free: Callable[[], int] = lambda: 0  # bytes of the disk that what comes has to leave

    def wipe(self) -> None:
        """Delete what a crash left, or work that was abandoned."""
        shutil.rmtree(self._root, ignore_errors=True)

    @contextmanager
    def here(
        self, sightings: Mapping[int, Sighting], rows: Collection[int], counting: Counting, progress: Progress,
        *, midway: bool,
    ) -> Iterator[dict[int, Sighting]]:  # fmt: skip
        """Give the sightings with those of these rows all here; what was brought is deleted in the end.

        `counting`: gives the weight files that are needed of one whose headers are here. `midway`: whether work would be lost if it had to be begun again later. Raises Lost or Later.
        """
        found = dict(sightings)
        try:
            for row in rows:
                if not found[row].lies_here:
                    patience = MIDWAY if midway else AT_FIRST
                    found[row] = self._bring(found[row], partial(counting, row), progress, patience)
                    midway = True
            yield found
        finally:
            self.wipe()

    def _bring(self, sighting: Sighting, counting: Of, progress: Progress, patience: float) -> Sighting:
        log.info("fetching %s again, at %s", sighting.name, sighting.revision[:12])
        begin, began = partial(progress.begin, DOING, 0), time.monotonic()
        try:
            again, rest = self._again(progress), partial(_rest, progress)
            here = again.bring(sighting, begin, progress.advance, rest, counting, patience, MIDWAY)
        except Later:
            if progress.abandon.is_set():
                raise Abandoned from None
            raise
        finally:
            progress.end()
        log.info("%s is here again, after %.1f s", sighting.name, time.monotonic() - began)
        return here

    def _again(self, progress: Progress) -> "Again":
        from ..plugins.sources.hub.again import Again
        from ..plugins.sources.hub.line import Line

        hub, tokens = self.settings.hub, self.settings.vocabulary != "refuse"
        self.line = self.line or Line(int(hub.bandwidth))
        most, stopped = hub.never_here, progress.stopped
        return Again(self._root, self.line, most=most, tokens=tokens, keep_free=self.keep_free, stopped=stopped)


def _rest(progress: Progress, why: str, seconds: float) -> None:
    """Wait, in sight of whoever looks whether anything goes on."""
    log.warning("%s; it is asked again in %.0f s", why, seconds)
    with progress.waiting("the Hub", seconds):
        progress.abandon.wait(seconds)
