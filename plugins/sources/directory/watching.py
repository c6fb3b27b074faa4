"""The events of a watched directory. They only wake the scan, and nothing hangs on them.

They get lost: a full queue, too few watches, a root made anew, a network file system. So the observer is looked after at
each scan.
"""

import logging
import os
from collections.abc import Callable
from pathlib import Path

from watchdog.events import (
    DirCreatedEvent,
    DirMovedEvent,
    FileAttribEvent,
    FileClosedEvent,
    FileCreatedEvent,
    FileDeletedEvent,
    FileMovedEvent,
    FileSystemEvent,
    FileSystemEventHandler,
)
from watchdog.observers import Observer
from watchdog.observers.api import BaseObserver

from .network import on_network

log = logging.getLogger(__name__)

EVENTS: list[type[FileSystemEvent]] = [  # not Opened, Modified: our own reading and each written block would wake us
    DirCreatedEvent, DirMovedEvent, FileAttribEvent, FileClosedEvent, FileCreatedEvent, FileDeletedEvent, FileMovedEvent,
]  # fmt: skip


class Watching:
    """The observer of one directory, if there can be one."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._wake: Callable[[], None] | None = None
        self._observer: BaseObserver | None = None
        self._lost: _Lost | None = None
        self._watched: tuple[int, int] | None = None

    def begin(self, wake: Callable[[], None]) -> None:
        """Call `wake` at each event from now on."""
        self._unhook()
        self._wake = wake = _guarded(wake)
        self._lost = _Lost(wake)
        logging.getLogger("watchdog.observers.inotify_c").addHandler(self._lost)
        self.tend()

    def end(self) -> None:
        """Stop."""
        self._wake = None
        self._unhook()
        self._stop()

    def tend(self) -> None:
        """Have an observer that lives and watches the folder that now bears the root's name."""
        identity = self._identity()
        if self._wake is None or (identity == self._watched and (self._alive() or on_network(self._root))):
            return
        self._stop()
        self._watched = identity
        if identity is None:
            return
        if on_network(self._root):
            log.info("%s lies on a network file system: no events, it is scanned at each interval", self._root)
            return
        self._start(self._wake)

    def _start(self, wake: Callable[[], None]) -> None:
        try:
            self._observer = observer = Observer()
            observer.schedule(_Wake(wake), str(self._root), recursive=True, event_filter=EVENTS)
            observer.start()
        except OSError as error:
            log.warning("no events from %s (%s); it is scanned at each interval", self._root, error)
            self._stop()

    def _alive(self) -> bool:
        """Whether every thread lives that an event passes through: that of the kernel's queue, emitter, observer."""
        if self._observer is None:
            return False
        reader = getattr(self._observer, "_inotify_fd", self._observer)
        return all(thread.is_alive() for thread in (self._observer, *self._observer.emitters, reader))

    def _identity(self) -> tuple[int, int] | None:
        try:
            status = os.stat(self._root)
        except OSError:
            return None
        return status.st_dev, status.st_ino

    def _stop(self) -> None:
        observer, self._observer = self._observer, None
        if observer is None:
            return
        threads = [*observer.emitters, observer]
        try:
            observer.stop()
        except KeyError as error:  # its books are wrong once a folder has taken the name of one that was moved away
            log.debug("watchdog cannot let go of %s", error)
            return
        for thread in threads:  # one that could not be started has nothing to join
            if thread.is_alive():
                thread.join(timeout=5)

    def _unhook(self) -> None:
        if self._lost is not None:
            logging.getLogger("watchdog.observers.inotify_c").removeHandler(self._lost)
            self._lost = None


def _guarded(wake: Callable[[], None]) -> Callable[[], None]:
    """Return `wake` without its exceptions: one of them would silently kill the thread that calls it."""

    def guarded() -> None:
        try:
            wake()
        except Exception:
            log.exception("an event was lost; the next scan will see what it told of")

    return guarded


class _Wake(FileSystemEventHandler):
    """Turns any event into one wake-up."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake

    def on_any_event(self, event: FileSystemEvent) -> None:
        self._wake()


class _Lost(logging.Handler):
    """Wakes when the kernel dropped events: watchdog logs that, and tells no handler."""

    def __init__(self, wake: Callable[[], None]) -> None:
        super().__init__(logging.WARNING)
        self._wake = wake

    def emit(self, record: logging.LogRecord) -> None:
        """Wake if the record tells of an overflow."""
        if "overflow" in record.getMessage():
            self._wake()
