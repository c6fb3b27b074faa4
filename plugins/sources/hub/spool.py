"""The spool: where what comes from the Hub lies until it is folded. Nothing in it outlives a restart.

A repository's headers come first: its small files, and each weight file with its header, its whole length, and a hole
where its numbers will be. So it is judged like a folder that was dropped, at the cost of some kilobytes.
"""

import hashlib
import os
import random
import re
import shutil
import time
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

from huggingface_hub import HfApi, hf_hub_url

from ....state.errors import Unavailable
from .client import Gone, Limited, answering, opened, within

PREFIX = 100_000  # bytes of a weight file that are asked for first: most headers are shorter
LONGEST_HEADER = 16 * 2**20  # bytes; admission refuses what is longer
SMALL = ("config.json", "adapter_config.json", "checkpoint.toml")
TOKENS = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "vocab.txt", "merges.txt", "tokenizer.model")
LARGEST_SMALL, MOST_FILES = 64 * 2**20, 1000  # bytes; files of a repository
WEIGHTS, INDEX = ".safetensors", ".safetensors.index.json"
NAME = re.compile(r"[\w][\w.+-]*", re.ASCII)
PIECE = 2**20  # bytes
CUTS = 5  # in a row, without a byte in between, after which a download is left for later
STEP = 30.0  # seconds for a short call
PACE = 600.0  # seconds of one connection, after which another one goes on


class Unwanted(Exception):
    """Nobody wants what is being brought any more."""


@dataclass(frozen=True)
class Remote:
    """One file of a repository at a commit."""

    name: str
    size: int  # bytes
    sha256: str  # of its content; empty where the Hub says none
    blob: str  # git's digest of it


@dataclass(frozen=True)
class Repository:
    """A repository at a commit, and the files of it that count."""

    repo: str
    commit: str
    files: tuple[Remote, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of its weights."""
        return sum(file.size for file in self.files if file.name.endswith(WEIGHTS))

    @property
    def holds(self) -> str:
        """What its files hold, by the Hub's digests: the same text for the same weights, and what says how they are meant."""
        return hashlib.sha256(repr(sorted((f.name, f.sha256 or f.blob) for f in self.files)).encode()).hexdigest()


def files_of(
    repo: str, commit: str, stopped: Callable[[], bool] = lambda: False, *, tokens: bool = False
) -> Repository:
    """Ask which files of a commit count: its weights, what says how they are meant, and its `tokens` if wanted.

    Only what lies in its topmost folder does: the rest are other frameworks' copies. Pickles are never fetched.
    """
    with answering(repo), within(STEP, stopped):
        siblings = HfApi().model_info(repo, revision=commit, files_metadata=True).siblings or []
    small = SMALL + (TOKENS if tokens else ())
    found = [
        Remote(s.rfilename, s.size or 0, s.lfs.sha256 if s.lfs else "", s.blob_id or "")
        for s in siblings
        if NAME.fullmatch(s.rfilename) and (s.rfilename in small or s.rfilename.endswith((WEIGHTS, INDEX)))
    ]
    if len(found) > MOST_FILES:
        raise Unavailable(f"{repo} has {len(found)} files of weights", f"at most {MOST_FILES} are read")
    return Repository(
        repo, commit, tuple(file for file in found if file.name.endswith(WEIGHTS) or file.size <= LARGEST_SMALL)
    )


class Spool:
    """The folder of what is here, or on its way."""

    def __init__(self, root: Path, bandwidth: int, closing: Event) -> None:
        """`bandwidth`: bytes a second, 0 for all there is; all ends soon after `closing` is set."""
        self._root, self._bandwidth, self._closing, self._stopped = root, bandwidth, closing, closing.is_set

    def wipe(self) -> None:
        """Delete all that a crash left."""
        shutil.rmtree(self._root, ignore_errors=True)

    def folder(self, repo: str, commit: str) -> Path:
        """Return where a repository's files lie."""
        return self._root / f"{repo.replace('/', '--')}@{commit[:12]}"

    def leave(self, folder: Path) -> None:
        """Delete one."""
        shutil.rmtree(folder, ignore_errors=True)

    def bring_headers(self, repository: Repository) -> Path:
        """Bring all but the numbers. Raises what the Hub's answers are made into."""
        folder = self.folder(repository.repo, repository.commit)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for file in repository.files:
            url, path = self._url(repository, file), folder / file.name
            with answering(repository.repo), within(STEP, self._stopped):
                data = _header(url, file.size) if file.name.endswith(WEIGHTS) else _part(url, 0, file.size)
            if not file.name.endswith(WEIGHTS):
                _check(file, repository.repo, _sum(file, data))
            path.write_bytes(data)
            os.truncate(path, file.size)
        return folder

    def bring(self, repository: Repository, folder: Path, advance: Callable[[int], None]) -> None:
        """Fill the weight files, and hold them against the Hub's digests; `advance` is told of each piece.

        A cut connection is taken up where it broke. Raises Unavailable if the disk lacks room, if a file is not what the
        Hub says it is, or if the Hub breaks off again and again.
        """
        free = shutil.disk_usage(folder).free
        if repository.nbytes > 0.9 * free:
            raise Unavailable(f"{repository.nbytes:,} bytes of disk, of which {free:,} are free", "make room")
        for file in repository.files:
            if file.name.endswith(WEIGHTS):
                self._fill(repository, file, folder / file.name, advance)

    def _fill(self, repository: Repository, file: Remote, path: Path, advance: Callable[[int], None]) -> None:
        digest = _sum(file)
        done = cuts = 0
        with path.open("r+b") as target:
            while done < file.size:
                before = done
                try:
                    with closing(self._pieces(repository, file, done)) as pieces:
                        for piece in pieces:
                            target.write(piece)
                            digest.update(piece)
                            done += len(piece)
                            advance(len(piece))
                    if done < file.size:
                        raise Unavailable("it broke off")
                except (Limited, Gone):
                    raise
                except Unavailable:
                    cuts = 1 if done > before else cuts + 1
                    if self._stopped() or cuts >= CUTS:
                        raise
                    self._closing.wait(random.uniform(0, 0.5 * 2**cuts))  # noqa: S311 - no secret
        try:
            _check(file, repository.repo, digest)
        except Unavailable:
            os.truncate(path, 0)
            os.truncate(path, file.size)
            raise

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
        return hf_hub_url(repository.repo, file.name, revision=repository.commit)


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
