"""The disk under the state: whether a version fits, and what keeps folding from going on until it does."""

import logging
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from ..plugins.sources.interface import Room
from ..state.errors import DiskFails, DiskFull
from ..state.prepared import forget
from ..state.store import BALLAST, Store, disk_bytes

log = logging.getLogger(__name__)

RESERVE = 64 * 2**20  # bytes that stay free for the history, besides the ballast
RETRY_AFTER = 30.0  # seconds after a write that failed; doubled each time for a disk that fails
LONGEST = 600.0  # seconds


class Disk:
    """What the disk lets one merge do."""

    def __init__(self, store: Store, need: int, lacks: Callable[[], str]) -> None:
        self.trouble = ""  # why nothing is folded, with the numbers; empty if nothing is the matter
        self.need = need  # bytes that the next version takes, while it is made
        self._store, self._lacks = store, lacks
        self._failed = 0  # writes in a row
        self._rests_until = 0.0  # monotonic seconds

    def suffices(self) -> bool:
        """Compare what a version needs with what is free, before its first byte is written; else `trouble` says it.

        After a write that failed, however much is free, the answer is no for a while.
        """
        if time.monotonic() < self._rests_until:
            return False
        if self.spare() < 0 and not (forget(self._store.prepared) and self.spare() >= 0):
            self._pause(f"disk full: {self._numbers()}")
            return False
        if why := self._lacks():
            self._pause(why)
            return False
        if self.trouble:
            log.info("folding goes on: %s", self._numbers())
        self.trouble = ""
        self._store.hold_ballast()
        return True

    def spare(self) -> int:
        """Return the bytes that are free besides what the next version needs: negative where it does not fit."""
        return self._store.free() - self.need - RESERVE

    def room(self) -> Room:
        """Return what may be brought here from elsewhere besides the next version."""
        need, drafts = self.need, self._store.drafts

        def keep_free() -> int:  # what a running fold has written was kept for it
            files = (Path(at) / name for at, _, names in os.walk(drafts) for name in names)
            return max(need - disk_bytes(files), 0) + RESERVE

        return Room(self.spare(), shutil.disk_usage(self._store.root).total - need - RESERVE - BALLAST, keep_free)

    def fail(self, error: DiskFull | DiskFails) -> None:
        """Take note of a write that failed: nothing is folded for a while, or until there is room where there is none."""
        full = isinstance(error, DiskFull)
        wait = RETRY_AFTER if full else min(LONGEST, RETRY_AFTER * 2**self._failed)
        self._failed += 1
        if not full or self.spare() >= 0:  # a quota, or who filled it went away
            self._rests_until = time.monotonic() + wait
        if full:
            forget(self._store.prepared)
            self._store.release_ballast()
        self._pause(f"disk full: {self._numbers()} ({error})" if full else f"{error}; tried again in {wait:g} s")

    def wrote(self) -> None:
        """Take note that a version was written whole."""
        self._failed = 0

    def _pause(self, why: str) -> None:
        """Say why nothing is folded; and let the history have what is left, so that it can be said."""
        if not self.trouble:
            log.warning("paused: %s", why)
        self.trouble = f"paused: {why}"
        self._store.make_room()

    def _numbers(self) -> str:
        """Return the numbers as they are at this moment."""
        need = self.need + RESERVE
        return f"a version needs {need:,} bytes, {self._store.free():,} are free"
