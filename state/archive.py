"""The archive: sources of folded checkpoints that are pinned here, because a path in a watched folder cannot be."""

import os
import shutil
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from .feeding import Feed
from .records import FileStamp
from .store import PRIVATE, Draft, Store, sync_folder

ADAPTER = "adapter_config.json"  # lies in the folder of every adapter, and of nothing else
CHUNK = 8 * 2**20  # bytes


@dataclass(frozen=True)
class Pinned:
    """One pinned source."""

    digest: str  # of its content
    nbytes: int
    adapter: bool
    at_ns: int  # when it was pinned


class Archive:
    """The folder `archive/`: each source is a copy under the digest of its content, with the name that it had."""

    def __init__(self, store: Store) -> None:
        self.folder = store.root / "archive"
        self._drafts = store.drafts

    def place(self, digest: str | None) -> Path | None:
        """Return where the source of a content lies, None if it is not pinned."""
        if digest is None or not (self.folder / digest).is_dir():
            return None
        return next((self.folder / digest).iterdir(), None)

    def entries(self) -> list[Pinned]:
        """Return what is pinned, oldest first."""
        folders = self.folder.iterdir() if self.folder.is_dir() else ()
        return sorted(map(_pinned, folders), key=lambda pinned: (pinned.at_ns, pinned.digest))

    def install(self, draft: Draft, digest: str) -> None:
        """Rename the source in that a draft brings, if it brings one."""
        if not draft.source.is_dir() or self.place(digest) is not None:
            return
        self.folder.mkdir(mode=PRIVATE, exist_ok=True)
        draft.source.rename(self.folder / digest)
        sync_folder(self.folder)
        sync_folder(self.folder.parent)

    def keep(self, digests: Collection[str]) -> None:
        """Remove all but these: aside first, because half of a source would be taken for one that is pinned."""
        for pinned in self.entries():
            if pinned.digest not in digests:
                aside = self._drafts / f"unpinned-{pinned.digest}"
                shutil.rmtree(aside, ignore_errors=True)
                (self.folder / pinned.digest).rename(aside)
                shutil.rmtree(aside)


def copy_source(place: Path, stamps: Iterable[FileStamp], draft: Draft, feed: Feed | None = None) -> Iterator[int]:
    """Copy a checkpoint's files into a draft, synced; yields the bytes of each chunk. A link is copied as what it leads to.

    What is no regular file is passed over: a pipe would never end. `feed` gives the bytes of files that have holes.
    """
    whole = place.is_dir()
    target = draft.source / place.name if whole else draft.source
    draft.source.mkdir(mode=PRIVATE)  # others may pass through the draft's own folder
    target.mkdir(mode=PRIVATE, exist_ok=True)
    for stamp in (stamp for stamp in stamps if stamp.size >= 0):
        source = place / stamp.name if whole else place
        chunks = _fed(feed, source, stamp.size) if feed is not None and feed.knows(str(source)) else _chunks(source)
        yield from _write(chunks, target / stamp.name)
    for folder in {target, draft.source, draft.folder}:
        sync_folder(folder)


def _chunks(source: Path) -> Iterator[bytes]:
    with source.open("rb") as reader:
        while chunk := reader.read(CHUNK):
            yield chunk


def _fed(feed: Feed, source: Path, size: int) -> Iterator[bytes]:
    fill = feed.open()
    for start in range(0, size, CHUNK):
        chunk = bytearray(min(CHUNK, size - start))
        fill(memoryview(chunk), str(source), start)
        yield bytes(chunk)


def _write(chunks: Iterable[bytes], target: Path) -> Iterator[int]:
    with target.open("xb") as writer:
        os.fchmod(writer.fileno(), 0o600)
        for chunk in chunks:
            writer.write(chunk)
            yield len(chunk)
        writer.flush()
        os.fsync(writer.fileno())


def is_unchanged(place: Path, stamps: Iterable[FileStamp]) -> bool:
    """Whether each file of a checkpoint still is the one that was sighted."""
    whole = place.is_dir()
    try:
        return all(FileStamp.of(s.name, os.stat(place / s.name if whole else place)) == s for s in stamps)
    except OSError:
        return False


def _pinned(folder: Path) -> Pinned:
    files = [path for path in folder.rglob("*") if path.is_file()]
    nbytes = sum(path.stat().st_size for path in files)
    return Pinned(folder.name, nbytes, any(path.name == ADAPTER for path in files), folder.stat().st_mtime_ns)
