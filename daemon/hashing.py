"""Hashing aside: the sha256 of weight files that a manifest lists, each computed once for as long as it is the same file."""

import hashlib
import logging
import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ..state.records import FileStamp, Sighting

log = logging.getLogger(__name__)

CHUNK = 4 * 2**20  # bytes; between two of them a stop is heeded
Key = tuple[str, FileStamp]  # path, and what tells that it is the same file


class Hasher:
    """Hashes files on a thread of its own, one at a time."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake  # called when a digest is known
        self._known: dict[Key, str] = {}
        self._begun: set[Key] = set()
        self._stop = threading.Event()
        self._thread = ThreadPoolExecutor(1, "mergd-hash")

    @property
    def busy(self) -> bool:
        """Whether a digest is still to come."""
        return bool(self._begun)

    def known(self, sighting: Sighting, names: Iterable[str]) -> dict[str, str]:
        """Return those digests of a place's files that are known; the others are begun, and `wake` tells of them."""
        place, found = Path(sighting.place), {}
        folder = place if place.is_dir() else place.parent
        for stamp in sighting.stamps:
            key = str(folder / stamp.name), stamp
            if stamp.name not in names:
                continue
            if key in self._known:
                found[stamp.name] = self._known[key]
            elif key not in self._begun:
                self._begun.add(key)
                self._thread.submit(self._hash, key)
        return found

    def forget(self, sighting: Sighting) -> None:
        """Let go of the digests of a place that has settled."""
        stamps = set(sighting.stamps)
        for key in [key for key in self._known if key[1] in stamps]:
            del self._known[key]

    def close(self) -> None:
        """Stop, in the middle of a file if need be."""
        self._stop.set()
        self._thread.shutdown(cancel_futures=True)

    def _hash(self, key: Key) -> None:
        """Hash one file; if it is another one by then, the next scan asks again."""
        try:
            digest = self._digest(*key)
            if digest is not None:
                self._known[key] = digest
        except OSError as error:
            log.info("%s could not be hashed: %s", key[0], error.strerror)
        if not self._stop.is_set():
            self._wake()
        self._begun.discard(key)  # last: until somebody was woken, there is more to come

    def _digest(self, path: str, stamp: FileStamp) -> str | None:
        digest = hashlib.sha256()
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            while chunk := os.read(fd, CHUNK):
                if self._stop.is_set():
                    return None
                digest.update(chunk)
            s = os.fstat(fd)
        finally:
            os.close(fd)
        now = (s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns)
        same = now == (stamp.device, stamp.inode, stamp.size, stamp.mtime_ns, stamp.ctime_ns)
        return digest.hexdigest() if same else None
