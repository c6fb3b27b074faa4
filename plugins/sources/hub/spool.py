"""The spool: where what comes from the Hub lies until it is folded. Nothing in it outlives a restart.

A repository's headers come first: its small files, and each weight file with its header, its whole length, and a hole
where its numbers will be. So it is judged like a folder that was dropped, at the cost of some kilobytes.
"""

import errno
import hashlib
import os
import random
import shutil
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from threading import Event
from typing import Any, BinaryIO

from huggingface_hub import hf_hub_url

from ....state.errors import Unavailable
from ....state.wording import size
from .backoff import Quiet, Resting
from .client import Gone, Limited, answering, opened, within
from .files import STEP, Remote, Repository, too_much

PREFIX = 100_000  # bytes of a weight file that are asked for first: most headers are shorter
LONGEST_HEADER, MOST_HEADERS = 16 * 2**20, 64 * 2**20  # bytes of one, and of all: admission refuses what is longer
PIECE = 2**20  # bytes
CUTS = 5  # in a row, without a byte in between, after which a download is left for later
PACE = 600.0  # seconds of one connection, after which another one goes on
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

    def __init__(self, root: Path, bandwidth: int, closing: Event, quiet: Quiet | None = None) -> None:
        """`bandwidth`: bytes a second, 0 for all there is; all ends soon after `closing` is set; `quiet`: when to ask nothing."""
        self._root, self._bandwidth, self._closing, self._stopped = root, bandwidth, closing, closing.is_set
        self._quiet, self._numbers = quiet or Quiet(), count(1)
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
            url = self._url(repository, file)
            with answering(repository.repo), within(STEP, self._stopped):
                data = _header(url, file.size) if file.has_weights else _part(url, 0, file.size)
            if not file.has_weights:
                _check(file, repository.repo, _sum(file, data))
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
        came = self._came.pop(path, None) or _Came(_sum(file))
        advance(came.done)
        cuts = 0
        with path.open("r+b") as target:
            target.seek(came.done)
            while came.done < file.size:
                before = came.done
                try:
                    self._go_on(repository, file, target, came, advance, keep_free)
                except (NoRoom, Limited, Gone, Resting, Unwanted):
                    self._came[path] = came
                    raise
                except Unavailable:
                    cuts = 1 if came.done > before else cuts + 1
                    if self._stopped() or cuts >= CUTS:
                        self._came[path] = came
                        raise
                    self._closing.wait(random.uniform(0, 0.5 * 2**cuts))  # noqa: S311 - no secret
        try:
            _check(file, repository.repo, came.digest)
        except Unavailable:
            os.truncate(path, 0)
            os.truncate(path, file.size)
            raise
        self._came[path] = came

    def _go_on(
        self, repository: Repository, file: Remote, target: BinaryIO, came: "_Came", advance: Callable[[int], None],
        keep_free: Callable[[], int],
    ) -> None:  # fmt: skip
        """Write what is to come of a file. Raises Unavailable where it breaks off."""
        with closing(self._pieces(repository, file, came.done)) as pieces:
            for piece in pieces:
                if came.done - came.looked_at >= LOOK_AT_DISK:
                    came.looked_at = came.done
                    self._check_room(keep_free, min(file.size - came.done, LOOK_AT_DISK))
                target.write(piece)
                came.digest.update(piece)
                came.done += len(piece)
                advance(len(piece))
        if came.done < file.size:
            raise Unavailable("it broke off")

    def _check_room(self, keep_free: Callable[[], int], nbytes: int) -> None:
        """Raise NoRoom where it stays that so many bytes would leave too few: retention may be about to free some."""
        for _ in range(LOOKS):
            free, kept = shutil.disk_usage(self._root).free, keep_free()
            if free - nbytes >= kept:
                return
            self._closing.wait(1.0)
        found = f"{size(free)} are free, of which the next version needs {size(kept)}"
        raise NoRoom(f"room (make room: {found})", "make room on the disk")

    def _pieces(self, repository: Repository, file: Remote, done: int) -> Generator[bytes, None, None]:
        """Yield what is to come of a file, no faster than is allowed."""
        began, got = time.monotonic(), 0
        with (
            answering(repository.repo),
            within(PACE, self._stopped),
            opened(self._url(repository, file), done) as (at, pieces),
        ):
            passed = done - at
            for piece in pieces:
                fresh = piece[passed:] if passed < len(piece) else b""
                passed = max(passed - len(piece), 0)
                if fresh:
                    yield fresh[: file.size - done - got]
                    got += len(fresh)
                    self._slow_down(got, began)
                if done + got >= file.size:
                    return

    def _slow_down(self, got: int, began: float) -> None:
        """Wait as long as so many bytes may take."""
        if self._bandwidth and (ahead := got / self._bandwidth - (time.monotonic() - began)) > 0:
            time.sleep(min(ahead, 1.0))

    def _url(self, repository: Repository, file: Remote) -> str:
        """Return where to ask for a file. Raises Resting while nothing is to be asked."""
        self._quiet.check()
        return hf_hub_url(repository.repo, file.name, revision=repository.commit)


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


def _sum(file: Remote, data: bytes = b"") -> Any:
    """Begin the digest of a file of the kind that the Hub gives."""
    begun = hashlib.sha256() if file.sha256 else hashlib.sha1(b"blob %d\0" % file.size, usedforsecurity=False)
    begun.update(data)
    return begun


def _check(file: Remote, repo: str, digest: Any) -> None:
    """Raise Unavailable if a file is not what the Hub says that it is."""
    if digest.hexdigest() != (file.sha256 or file.blob):
        raise Unavailable(
            f"{file.name} of {repo} came with other bytes than the Hub's digest says", "it is fetched again"
        )


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
