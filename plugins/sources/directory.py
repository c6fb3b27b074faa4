"""A watched directory: each folder in it, and each lone `.safetensors` file, may be a checkpoint.

watchdog only wakes the scan. Its events get lost (a full queue, too few watches, a root made anew, a network file
system), so that nothing hangs on them, and the observer is looked after at each scan.
"""

import logging
import os
import stat
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from pathlib import Path

from watchdog.events import (
    DirCreatedEvent,
    DirMovedEvent,
    FileClosedEvent,
    FileCreatedEvent,
    FileDeletedEvent,
    FileMovedEvent,
    FileSystemEvent,
    FileSystemEventHandler,
)
from watchdog.observers import Observer
from watchdog.observers.api import BaseObserver

from ...state.errors import Unavailable
from ...state.records import FileStamp, Sighting
from .interface import Scan

log = logging.getLogger(__name__)

IGNORED = (".*", "*~", "*.tmp", "*.part", "*.partial", "*.incomplete", "*.lock", "*.aria2", "*.crdownload",
           "tmp-checkpoint-*", "~syncthing~*", "lost+found")  # fmt: skip
RELEVANT = ("*.safetensors", "*.safetensors.index.json", "config.json", "adapter_config.json")
# What a copy in progress leaves beside the files: rsync, safetensors, browsers, aria2, syncthing, the Hub's client.
IN_PROGRESS = (".*.safetensors.*", ".tmp*", ".~tmp~", "~syncthing~*", "*.tmp", "*.part", "*.partial", "*.incomplete",
               "*.aria2", "*.crdownload")  # fmt: skip
HUB_DOWNLOADS = Path(".cache", "huggingface", "download")
EVENTS: list[type[FileSystemEvent]] = [  # not Opened, Modified: our own reading and each written block would wake us
    DirCreatedEvent, DirMovedEvent, FileClosedEvent, FileCreatedEvent, FileDeletedEvent, FileMovedEvent,
]  # fmt: skip


class Directory:
    """The directory source."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._wake: Callable[[], None] | None = None
        self._observer: BaseObserver | None = None
        self._watched: tuple[int, int] | None = None

    @property
    def name(self) -> str:
        """Return "directory": one directory is watched."""
        return "directory"

    def scan(self, mark: str | None = None) -> Scan:
        """Return every place in the directory that could hold a checkpoint, whatever its state."""
        self._tend()
        try:
            names = sorted(os.listdir(self.root))
        except OSError as error:
            raise Unavailable(f"cannot list {self.root}: {error.strerror}", "bring the watched folder back") from None
        places = (self.root / name for name in names if not _matches(name, IGNORED) and _is_text(name))
        return Scan(tuple(sighting for place in places if (sighting := self.sight(place)) is not None))

    def sight(self, place: Path) -> Sighting | None:
        """Return the sighting of one place, wherever it lies, or None if nothing there could be a checkpoint."""
        try:
            if place.is_dir():
                stamps = tuple(_stamps(place))
                return Sighting(self.name, str(place), place.name, stamps, _in_progress(place))
            if place.suffix == ".safetensors":
                return Sighting(self.name, str(place), place.name, (_stamp(place, place.name),))
        except PermissionError:
            return Sighting(self.name, str(place), place.name, ())
        except OSError as error:  # it went away, or is a link that leads round in a circle
            log.debug("%s cannot be looked at: %s", place, error.strerror)
        return None

    # ------------------------------------------------------------------------------------------------------- the hint

    def watch(self, wake: Callable[[], None]) -> None:
        """Let watchdog call `wake`; where it cannot, the repeated scan finds everything all the same."""
        self._wake = wake
        self._tend()

    def close(self) -> None:
        """Stop the observer."""
        self._wake = None
        self._stop_observer()

    def _tend(self) -> None:
        """Have an observer that lives and watches the folder that now bears the root's name."""
        if self._wake is None or (self._alive() and self._identity() == self._watched):
            return
        self._stop_observer()
        self._watched = self._identity()
        if self._watched is None:
            return
        try:
            self._observer = observer = Observer()
            observer.schedule(_Wake(self._wake), str(self.root), recursive=True, event_filter=EVENTS)
            observer.start()
        except OSError as error:
            log.warning("no events from %s (%s); it is scanned at each interval", self.root, error)
            self._stop_observer()

    def _alive(self) -> bool:
        observer = self._observer
        return observer is not None and observer.is_alive() and all(e.is_alive() for e in observer.emitters)

    def _identity(self) -> tuple[int, int] | None:
        try:
            status = os.stat(self.root)
        except OSError:
            return None
        return status.st_dev, status.st_ino

    def _stop_observer(self) -> None:
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


class _Wake(FileSystemEventHandler):
    """Turns any event into one wake-up. An exception here would silently kill the observer."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake

    def on_any_event(self, event: FileSystemEvent) -> None:
        try:
            self._wake()
        except Exception:
            log.exception("an event was lost; the next scan will see what it told of")


def _stamps(folder: Path) -> Iterator[FileStamp]:
    for name in sorted(os.listdir(folder)):
        if not _matches(name, RELEVANT) or _matches(name, IGNORED):
            continue
        try:
            stamp = _stamp(folder / name, name)
        except PermissionError:
            raise
        except OSError:  # gone meanwhile, or a link that leads nowhere or round in a circle
            continue
        yield stamp


def _stamp(path: Path, name: str) -> FileStamp:
    s = os.stat(path)
    size = s.st_size if stat.S_ISREG(s.st_mode) else -1
    return FileStamp(name, s.st_dev, s.st_ino, size, s.st_mtime_ns, s.st_ctime_ns)


def _in_progress(folder: Path) -> str:
    names = os.listdir(folder)
    if (folder / HUB_DOWNLOADS).is_dir():
        names += [name for name in os.listdir(folder / HUB_DOWNLOADS) if name.endswith(".incomplete")]
    return next((name for name in sorted(names) if _matches(name, IN_PROGRESS)), "")


def _is_text(name: str) -> bool:
    """Whether a name can be written down; one whose bytes are no UTF-8 can be in no log, database or message."""
    try:
        name.encode()
    except UnicodeEncodeError:
        log.warning("%r is passed over: its name is no UTF-8", name)
        return False
    return True


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)
