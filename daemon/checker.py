"""Checking aside: every file of a version is read again and hashed, slice by slice, on a thread that stops at once."""

import errno
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from ..state.digests import Digest
from ..state.errors import Abandoned, DamagedFiles
from ..state.records import Files
from ..state.store import Store
from .machine import be_last

log = logging.getLogger(__name__)

SLICE = 4 * 2**20  # bytes; between two of them a stop is heeded
UNREADABLE = (errno.ENOENT, errno.EIO, errno.ELOOP, errno.EISDIR, errno.ENOTDIR, errno.EUCLEAN)  # a file is spoilt so


@dataclass(frozen=True)
class Finding:
    """What a check of one version found."""

    version: int
    damaged: tuple[str, ...]  # files that are gone, or not as they were written; within the state
    stamps: Mapping[str, tuple[int, int]] = field(default_factory=dict)  # size, mtime in ns, before they were read


class Pace:
    """How a check goes on: as fast as it can, as slowly as disturbs nobody, or not now."""

    def __init__(self, hurried: bool = True) -> None:
        self.hurried = hurried
        self._go, self._stop = threading.Event(), threading.Event()
        self._go.set()

    def hold(self, held: bool) -> None:
        """Wait with the next slice, or go on."""
        self._go.clear() if held else self._go.set()

    def stop(self) -> None:
        """End the check before its next slice."""
        self._stop.set()
        self._go.set()

    def step(self, took: float) -> None:
        """Wait for as long as the last slice took, unless it is hurried, and while it is held. Raises Abandoned."""
        self._stop.wait(0 if self.hurried else took)
        self._go.wait()
        if self._stop.is_set():
            raise Abandoned


class Checker:
    """Checks one version at a time."""

    def __init__(self, store: Store, wake: Callable[[], None]) -> None:
        self.version: int | None = None  # that is being checked, or was and is not taken yet
        self._pace = Pace()
        self._store, self._wake = store, wake
        self._thread = ThreadPoolExecutor(1, "mergd-check", be_last)
        self._future: Future[Finding] | None = None

    def start(self, number: int, parts: Sequence[Files], hurried: bool) -> None:
        """Begin with a version, of which these parts are kept; `wake` is called at its end."""
        assert self.version is None
        self.version, self._pace = number, Pace(hurried)
        self._future = self._thread.submit(check_version, self._store, number, parts, self._pace)
        self._future.add_done_callback(lambda _: self._wake())

    def hold(self, held: bool) -> None:
        """Wait with the next slice, or go on; what somebody waits for goes on."""
        self._pace.hold(held and not self._pace.hurried)

    def give_way(self) -> None:
        """Give way to what somebody waits for: what nobody does is stopped."""
        if not self._pace.hurried:
            self._pace.stop()

    def ended(self) -> bool:
        """Whether a finding waits to be taken."""
        return self._future is not None and self._future.done()

    def take(self) -> Finding | None:
        """Return what was found; None if that could not be told, which the log says."""
        assert self._future is not None
        future, self._future, number, self.version = self._future, None, self.version, None
        try:
            return future.result()
        except Abandoned:
            return None
        except Exception as error:  # noqa: BLE001 - it says nothing about the version, and is tried again
            log.error("v%s could not be checked: %s", number, error)
            return None

    def close(self) -> None:
        """Stop, in the middle of a file if need be."""
        self._pace.stop()
        self._thread.shutdown(cancel_futures=True)


def check_version(store: Store, number: int, parts: Sequence[Files], pace: Pace) -> Finding:
    """Read these parts of a version, and return what is not as its manifest says. Raises Abandoned when it is stopped."""
    try:
        promised, stamps = store.promised(number, *parts), store.stamps(number)
    except DamagedFiles as error:
        return Finding(number, error.files)
    damaged = [name for name, file in promised.items() if _sum_of(store.root / name, pace) != file.blake3]
    return Finding(number, tuple(damaged), stamps)


def _sum_of(path: Path, pace: Pace) -> str | None:
    """Return a file's digest, from the disk and not from what the kernel remembers; None if it cannot be read."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            return _hashed(fd, pace)
        finally:
            os.close(fd)
    except OSError as error:
        if error.errno in UNREADABLE:
            return None
        raise


def _hashed(fd: int, pace: Pace) -> str:
    digest, at, took = Digest(), 0, 0.0
    while True:
        pace.step(took)
        began = time.monotonic()
        os.posix_fadvise(fd, at, SLICE, os.POSIX_FADV_DONTNEED)
        data = os.pread(fd, SLICE, at)
        if not data:
            return digest.hexdigest()
        digest.update(data)
        os.posix_fadvise(fd, at, len(data), os.POSIX_FADV_DONTNEED)  # it is no reason to forget what others read
        at, took = at + len(data), time.monotonic() - began
