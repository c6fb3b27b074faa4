"""Hashing aside: the sha256 of weight files that a manifest lists, each computed once for as long as it is the same file."""

import hashlib
import logging
import os
import threading
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ..state.errors import Busy, Unavailable
from ..state.headers import open_regular
from ..state.records import FileStamp, Sighting

if TYPE_CHECKING:
    from hashlib import _Hash

log = logging.getLogger(__name__)

CHUNK = 4 * 2**20  # bytes; between two of them a stop is heeded
SLICE = 4 * CHUNK  # bytes; after so many it is another file's turn, so that a large one keeps none waiting


@dataclass
class _Work:
    """A file that is being hashed."""

    place: str
    path: str
    stamp: FileStamp
    done: int = 0  # bytes
    digest: "_Hash" = field(default_factory=hashlib.sha256)


class Hasher:
    """Hashes files on a thread of its own, by turns."""

    def __init__(self, wake: Callable[[], None], most: int) -> None:
        self._wake = wake  # called when a digest is known
        self._most = most  # bytes of a file; a larger one is hashed by nobody
        self._lock = threading.Lock()
        self._results: dict[str, dict[FileStamp, str | None]] = {}  # by place; see `known`. None: still to come
        self._pending = 0
        self._stop = threading.Event()
        self._thread = ThreadPoolExecutor(1, "mergd-hash")

    @property
    def busy(self) -> bool:
        """Whether a digest is still to come."""
        return self._pending > 0

    def known(self, sighting: Sighting, names: Collection[str]) -> dict[str, str]:
        """Return those digests of a place's files that are known; the others are begun, and `wake` tells of them.

        A file that cannot be hashed has an empty one for as long as it is the same file.
        """
        place = Path(sighting.place)
        folder = place if place.is_dir() else place.parent
        with self._lock:
            before = self._results.pop(sighting.place, {})
            results = {stamp: before.get(stamp) for stamp in sighting.stamps if stamp.name in names}
            if results:
                self._results[sighting.place] = results
            for stamp in results.keys() - before.keys():
                self._pending += 1
                self._thread.submit(self._go_on, _Work(sighting.place, str(folder / stamp.name), stamp))
            return {stamp.name: digest for stamp, digest in results.items() if digest is not None}

    def forget(self, place: str) -> None:
        """Let go of what is known of a place, and of what is not hashed yet."""
        with self._lock:
            self._results.pop(place, None)

    def close(self) -> None:
        """Stop, in the middle of a file if need be."""
        self._stop.set()
        self._thread.shutdown(cancel_futures=True)

    # ------------------------------------------------------------------------------------------------- on the thread

    def _go_on(self, work: _Work) -> None:
        """Hash a file's next slice, and queue it behind the others if there is more of it."""
        try:
            digest = self._next_slice(work) if self._is_wanted(work) else ""
        except OSError as error:
            log.warning("%s cannot be read now: %s", work.path, error)
            self._end(work, None)
            return
        except Exception as error:  # noqa: BLE001 - it is told of, and not tried again until the file is another one
            log.warning("%s cannot be hashed: %s", work.path, error)
            digest = ""
        if digest is None and not self._stop.is_set():
            self._thread.submit(self._go_on, work)
        else:
            self._end(work, digest)

    def _is_wanted(self, work: _Work) -> bool:
        with self._lock:
            return work.stamp in self._results.get(work.place, {})

    def _next_slice(self, work: _Work) -> str | None:
        """Return the digest, None if there is more to read. Raises a MergdError or OSError if it cannot be had."""
        if work.stamp.size > self._most:
            raise Unavailable(f"it has {work.stamp.size:,} bytes, and {self._most:,} are the most")
        fd = open_regular(work.path)
        try:
            end = min(work.done + SLICE, work.stamp.size)
            while work.done < end and not self._stop.is_set():
                chunk = os.pread(fd, min(CHUNK, end - work.done), work.done)
                if not chunk:
                    raise Busy("it ends too early")
                work.digest.update(chunk)
                work.done += len(chunk)
            if FileStamp.of(work.stamp.name, os.fstat(fd)) != work.stamp:
                raise Busy("it has changed")
        finally:
            os.close(fd)
        return work.digest.hexdigest() if work.done == work.stamp.size else None

    def _end(self, work: _Work, digest: str | None) -> None:
        with self._lock:
            results = self._results.get(work.place, {})
            if digest is None:  # then it is begun anew at the next scan
                results.pop(work.stamp, None)
            elif work.stamp in results:
                results[work.stamp] = digest
        try:
            if digest is not None and not self._stop.is_set():
                self._wake()
        finally:
            with self._lock:
                self._pending -= 1  # last: until somebody was woken, there is more to come
