"""The spool: where what comes from the Hub lies until it is folded. Nothing in it outlives a restart.

A repository's headers come first: its small files, and each weight file with its header, its whole length, and a hole
where its numbers will be. So it is judged like a folder that was dropped, at the cost of some kilobytes.
"""

import errno
import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

from ....state.errors import MergdError, Unavailable
from ....state.wording import size
from .client import answering, opened, within
from .files import STEP, Remote, Repository, too_much
from .line import Line, Stopped, rest

PREFIX = 100_000  # bytes of a weight file that are asked for first: most headers are shorter
LONGEST_HEADER, MOST_HEADERS = 16 * 2**20, 64 * 2**20  # bytes of one, and of all: admission refuses what is longer
LOOK_AT_DISK, LOOKS = (
    16 * 2**20,
    10,
)  # bytes after which it is asked again what is free; and how often until it is enough


class Unwanted(Exception):
    """Nobody wants what is being brought any more, or not now: what came of it stays until it is left."""


class NoRoom(Unavailable):
    """The disk has no room for more; what came is deleted, so that folding goes on."""


@dataclass
class _Came:
    """How far a file is."""

    digest: Any  # of what came
    done: int = 0  # bytes
    looked_at: int = -LOOK_AT_DISK  # bytes that had come when the disk was looked at


class Spool:
    """The folder of what is here, or on its way."""

    def __init__(self, root: Path, line: Line, stopped: Stopped) -> None:
        """`line`: which all share who fetch weights; all ends soon after `stopped` says so."""
        self.line = line
        self._root, self._stopped = root, stopped
        self._numbers = count(1)
        self._came: dict[Path, _Came] = {}  # how far files are that nobody fetches at the moment

    def wipe(self) -> None:
        """Delete all that a crash left."""
        shutil.rmtree(self._root, ignore_errors=True)

    def folder(self, repo: str, commit: str) -> Path:
        """Return where a repository's files are to lie: another place each time, so that nothing meets what is deleted."""
        return self._root / f"{repo.replace('/', '--')}@{commit[:12]}-{next(self._numbers)}"

    def leave(self, folder: Path) -> None:
        """Delete one."""
        shutil.rmtree(folder, ignore_errors=True)
        for path in [path for path in list(self._came) if path.parent == folder]:
            self._came.pop(path, None)

    def held(self, folder: Path) -> int:
        """Return the bytes of weights that are in one, and are not fetched again."""
        return sum(came.done for path, came in list(self._came.items()) if path.parent == folder)

    # --------------------------------------------------------------------------------------------------------- headers

    def bring_headers(self, repository: Repository, folder: Path | None = None) -> Path:
        """Bring all but the numbers. Raises what the Hub's answers are made into, and Refused where headers are too much.

        Where nothing but what is never read has weights, there is an empty file of it, so that it is refused by name.
        """
        folder = folder or self.folder(repository.repo, repository.commit)
        with _room_for(folder):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            for file, data in self._headers(repository, repository.files):
                (folder / file.name).write_bytes(data)
                os.truncate(folder / file.name, file.size)
                self._came.pop(folder / file.name, None)
            for name in repository.never_read if not repository.nbytes else ():
                (folder / name).touch()
        return folder

    def reads_alike(self, repository: Repository, folder: Path) -> bool:
        """Whether headers that are fetched once more are the same: nothing but that says that they came unharmed."""
        weights = [file for file in repository.files if file.has_weights]
        return all(_begins_with(folder / file.name, data) for file, data in self._headers(repository, weights))

    def _headers(self, repository: Repository, files: Iterable[Remote]) -> Iterator[tuple[Remote, bytes]]:
        left = MOST_HEADERS
        for file in files:
            url = self.line.url(repository, file)
            with answering(repository.repo), within(STEP, self._stopped):
                data = _header(url, file.size) if file.has_weights else _part(url, 0, file.size)
            if not file.has_weights:
                digest = file.begin_sum()
                digest.update(data)
                file.check(repository.repo, digest)
            left -= len(data) if file.has_weights else 0
            if left < 0:
                raise too_much(f"headers of more than {size(MOST_HEADERS)} in all", size(MOST_HEADERS))
            yield file, data

    # --------------------------------------------------------------------------------------------------------- content

    def bring(
        self, repository: Repository, folder: Path, advance: Callable[[int], None],
        *, keep_free: Callable[[], int] = lambda: 0,
    ) -> None:  # fmt: skip
        """Fill the weight files, and hold them against the Hub's digests; `advance` is told of each piece.

        What came before an end stays, and a cut connection is taken up where it broke. Raises Unavailable if a file is
        not what the Hub says it is, or if the Hub breaks off again and again; NoRoom, and then nothing stays, where fewer
        bytes of the disk would be left than `keep_free` gives.
        """
        try:
            with _room_for(folder):
                for file in repository.files:
                    if file.has_weights:
                        self._fill(repository, file, folder / file.name, advance, keep_free)
        except NoRoom:
            self.leave(folder)
            raise

    def _fill(
        self, repository: Repository, file: Remote, path: Path, advance: Callable[[int], None],
        keep_free: Callable[[], int],
    ) -> None:  # fmt: skip
        came = self._came.pop(path, None) or _Came(file.begin_sum())
        try:
            advance(came.done)
            self._go_on(repository, file, path, came, advance, keep_free)
        except (MergdError, Unwanted):
            self._came[path] = came
            raise
        try:
            file.check(repository.repo, came.digest)
        except Unavailable:
            os.truncate(path, 0)
            os.truncate(path, file.size)
            raise
        self._came[path] = came

    def _go_on(
        self, repository: Repository, file: Remote, path: Path, came: "_Came", advance: Callable[[int], None],
        keep_free: Callable[[], int],
    ) -> None:  # fmt: skip
        """Write what is to come of a file. Raises Unavailable where it breaks off."""
        span = came.done, file.size
        with closing(self.line.pieces(repository, file, span, self._stopped)) as pieces, path.open("r+b") as target:
            target.seek(came.done)
            for piece in pieces:
                if came.done - came.looked_at >= LOOK_AT_DISK:
                    came.looked_at = came.done
                    self.check_room(keep_free, min(file.size - came.done, LOOK_AT_DISK))
                target.write(piece)
                came.digest.update(piece)
                came.done += len(piece)
                advance(len(piece))

    def check_room(self, keep_free: Callable[[], int], nbytes: int) -> None:
        """Raise NoRoom where it stays that so many bytes would leave too few: retention may be about to free some."""
        for _ in range(LOOKS):
            free, kept = shutil.disk_usage(self._root).free, keep_free()
            if free - nbytes >= kept:
                return
            rest(1.0, self._stopped)
        found = f"{size(free)} are free, {size(nbytes)} are to come, and the next version needs {size(kept)}"
        raise NoRoom(f"room (make room: {found})", "make room on the disk")


def with_headers(repository: Repository, folder: Path) -> Repository:
    """Return a repository with what its headers are, which lie in a folder."""
    return replace(
        repository,
        files=tuple(
            replace(file, header=_header_digest(folder / file.name)) if file.has_weights else file
            for file in repository.files
        ),
    )


def _header_digest(path: Path) -> str:
    with path.open("rb") as file:
        length = file.read(8)
        return hashlib.sha256(length + file.read(min(int.from_bytes(length, "little"), LONGEST_HEADER))).hexdigest()


def _begins_with(path: Path, data: bytes) -> bool:
    """Whether a file begins with these bytes, as far as it goes."""
    try:
        with path.open("rb") as file:
            return file.read(len(data)) == data
    except FileNotFoundError:
        return False


@contextmanager
def _room_for(folder: Path) -> Iterator[None]:
    """Say that the disk is full by who can mend it. Raises NoRoom."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise NoRoom(f"room (make room: {error.strerror} at {folder.parent})", "make room on the disk") from None


def _header(url: str, size: int) -> bytes:
    """Return a weight file's header, as far as it is one: what follows judges it."""
    data = _part(url, 0, min(PREFIX, size))
    length = 8 + int.from_bytes(data[:8], "little")
    if len(data) < length <= min(LONGEST_HEADER, size):
        data += _part(url, len(data), length)
    return data[:length]


def _part(url: str, start: int, end: int) -> bytes:
    """Return some bytes of a file. Raises Unavailable if there are fewer."""
    if start >= end:
        return b""
    found = bytearray()
    with opened(url, start, end) as (at, pieces):
        for piece in pieces:
            found += piece
            if len(found) >= end - at:
                break
    if len(found) < end - at:
        raise Unavailable("it broke off", "it is fetched again")
    return bytes(found[start - at : end - at])
