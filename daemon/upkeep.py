"""The daily upkeep of the database, aside: is all of it as it was written, and a copy of it if so."""

import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from ..state.backups import is_due
from ..state.errors import Damaged
from ..state.history import History

log = logging.getLogger(__name__)


class Upkeep:
    """Reads the database on a thread of its own, over a connection that cannot write; the loop takes what was found."""

    def __init__(self, database: Path, wake: Callable[[], None]) -> None:
        self._database, self._wake = database, wake
        self._thread = ThreadPoolExecutor(1, "mergd-upkeep")
        self._future: Future[None] | None = None

    @property
    def resting(self) -> bool:
        """Whether nothing is being read, and nothing waits to be taken."""
        return self._future is None

    def begin(self) -> None:
        """Begin, if the last time was a day ago; `wake` is called at the end. However often that was missed: once."""
        if self._future is None and is_due(self._database):
            self._future = self._thread.submit(self._look)
            self._future.add_done_callback(lambda _: self._wake())

    def take(self) -> None:
        """Take what was found, once it is there. Raises Damaged; what else ends it is tried again at the next upkeep."""
        if self._future is None or not self._future.done():
            return
        future, self._future = self._future, None
        try:
            future.result()
        except Damaged:
            raise
        except Exception as error:  # noqa: BLE001 - a full disk is no reason to stop folding
            log.error("the database could not be checked and copied: %s", error)

    def close(self) -> None:
        """Wait for the end of what runs."""
        self._thread.shutdown()

    def _look(self) -> None:
        with History(self._database) as history:
            history.check_all()  # first: a broken database replaces no copy
            log.info("the database is whole, and copied to %s", history.keep_daily())
