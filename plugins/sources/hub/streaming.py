"""Streaming: weights that never lie on this disk. They come once to be vouched for, and again, by ranges, as they are read.

The Hub's digest is of a whole file, and a fold reads parts of it: so each file goes by once, from front to back, and while
it does a digest of each of its blocks is kept. If all of it is what the Hub says, so is a block that has its digest.
"""

import os
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

from ....state.digests import Digest
from ....state.errors import Busy, MergdError, NotPermitted, Unavailable
from ....state.feeding import Fill
from ..interface import Later
from .client import Gone, Limited
from .files import Remote, Repository
from .line import Line, Stopped
from .spool import LONGEST_HEADER

BLOCK = 2**20  # bytes that have a digest of their own
WINDOW = 32  # blocks: as many are asked for at once, and kept, where a file is read from front to back
TRIES = 3  # for a block that comes with other bytes
AGAIN = 30.0  # seconds after which it is tried again where the Hub does not say

Lose = Callable[[MergdError], MergdError]
"""Is told that what was vouched for is not given any more, and returns what is to be raised."""


def looked_at_anew(error: MergdError) -> MergdError:
    """Return what has a checkpoint that is not given any more settle again."""
    return error if isinstance(error, NotPermitted) else Busy(str(error), error.hint)


class Passing:
    """One file that goes by: its header is kept on the disk, and of each block its digest."""

    def __init__(self, file: Remote, path: Path) -> None:
        self.digests: list[bytes] = []
        self._file, self._path = file, path
        self._begin()

    def _begin(self) -> None:
        self.digests.clear()
        self.done, self._sum, self._head = 0, self._file.begin_sum(), bytearray()
        self._running, self._left = Digest(), BLOCK

    def go_on(self, line: Line, repository: Repository, advance: Callable[[int], None], stopped: Stopped) -> None:
        """Let what is to come of it go by. What went by before an end counts, unless all of it is not what the Hub says."""
        advance(self.done)
        with closing(line.pieces(repository, self._file, (self.done, self._file.size), stopped)) as pieces:
            for piece in pieces:
                self._take(piece)
                advance(len(piece))
        try:
            self._file.check(repository.repo, self._sum)
        except Unavailable:
            self._begin()
            raise
        self._end()

    def _take(self, piece: bytes) -> None:
        self.done += len(piece)
        self._sum.update(piece)
        if len(self._head) < self._header:
            self._head += piece
        rest = memoryview(piece)
        while rest:
            some, rest = rest[: self._left], rest[self._left :]
            self._running.update(some)
            self._left -= len(some)
            if not self._left:
                self._end_block()

    @property
    def _header(self) -> int:
        """Bytes of the header, as far as it is known."""
        return min(8 + int.from_bytes(self._head[:8], "little"), LONGEST_HEADER) if len(self._head) >= 8 else 8

    def _end_block(self) -> None:
        self.digests.append(self._running.digest())
        self._running, self._left = Digest(), BLOCK

    def _end(self) -> None:
        """Write the header, now that all is known to be as it should be: what was judged may have been another one."""
        if self._left < BLOCK:
            self._end_block()
        with self._path.open("r+b") as file:
            file.write(self._head[: self._header])


class Vouching:
    """The weights of a repository that go by, once in all, however often that is interrupted."""

    def __init__(self, line: Line, repository: Repository, folder: Path, lose: Lose = looked_at_anew) -> None:
        """`lose`: what its feed raises where it is not given any more."""
        self._line, self._repository, self._lose = line, repository, lose
        self._passing = {f.name: Passing(f, folder / f.name) for f in repository.files if f.has_weights}

    @property
    def held(self) -> int:
        """Bytes that went by, and need not go by again."""
        return sum(passing.done for passing in self._passing.values())

    def go_on(self, advance: Callable[[int], None], stopped: Stopped) -> "Stream":
        """Let what is to come go by, and return the feed of all; `advance` is told of each piece, and of what went by before.

        Raises Unavailable if a file is not what the Hub says it is, or if the Hub breaks off again and again.
        """
        for passing in self._passing.values():
            passing.go_on(self._line, self._repository, advance, stopped)
        digests = {name: passing.digests for name, passing in self._passing.items()}
        return Stream(self._line, self._repository, digests, stopped, lose=self._lose)


@dataclass(frozen=True)
class Stream:
    """The weights of a repository that were vouched for, as a feed."""

    line: Line
    repository: Repository
    digests: Mapping[str, list[bytes]]  # of the blocks of each file, by its name
    stopped: Stopped
    window: int = WINDOW  # blocks that are asked for at once, at most
    lose: Lose = field(default=looked_at_anew, compare=False)

    def knows(self, path: str) -> bool:
        """Whether it is one of the weight files."""
        return os.path.basename(path) in self.digests

    def open(self) -> Fill:
        """Return what fills the views of one reader, from a window of its own."""
        return _Window(self).fill

    def among(self, readers: int) -> Self:
        """Return the same for one of so many that are read at once."""
        return replace(self, window=max(WINDOW // readers, 1))

    def until(self, stopped: Stopped) -> Self:
        """Return the same for work that may be told to stop."""
        return replace(self, stopped=lambda: self.stopped() or stopped())

    def blocks(self, name: str, number: int, most: int) -> list[memoryview]:
        """Return so many blocks of a file from one on, fewer at its end. Raises Later if they cannot be had now, and
        what `lose` gives if they cannot be had any more."""
        wanted = self.digests[name][number : number + most]
        for _ in range(TRIES):
            blocks = self._asked(name, number, most)
            if wanted and [Digest(block).digest() for block in blocks] == wanted:
                return blocks
        raise Later(f"{name} of {self.repository.repo} came with other bytes than before", time.time() + AGAIN)

    def _asked(self, name: str, number: int, most: int) -> list[memoryview]:
        file = next(file for file in self.repository.files if file.name == name)
        span, came = (number * BLOCK, min((number + most) * BLOCK, file.size)), bytearray()
        try:
            for piece in self.line.pieces(self.repository, file, span, self.stopped):
                came += piece
        except (Gone, NotPermitted) as error:  # since it was vouched for: another try would be answered alike
            raise self.lose(error) from None
        except Unavailable as error:
            self.line.quiet.heed(error)
            seconds = error.seconds if isinstance(error, Limited) and error.seconds else AGAIN
            raise Later(str(error), time.time() + seconds) from None
        whole = memoryview(came)
        return [whole[at : at + BLOCK] for at in range(0, len(came), BLOCK)]


class _Window:
    """The blocks that one reader saw last: more of them at once the longer it goes on from front to back."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._name, self._first, self._blocks = "", 0, list[memoryview]()

    def fill(self, view: memoryview, path: str, offset: int) -> None:
        """Fill a view with what a file holds from an offset on. Raises Unavailable if that cannot be had."""
        name, done = os.path.basename(path), 0
        while done < len(view):
            number, skip = divmod(offset + done, BLOCK)
            some = self._block(name, number)[skip : skip + len(view) - done]
            view[done : done + len(some)] = some
            done += len(some)

    def _block(self, name: str, number: int) -> memoryview:
        here = name == self._name
        if not (here and 0 <= number - self._first < len(self._blocks)):
            goes_on = here and number == self._first + len(self._blocks)
            most = min(2 * len(self._blocks), self._stream.window) if goes_on else 1
            self._blocks.clear()  # before the next ones come
            self._blocks = self._stream.blocks(name, number, most)
            self._name, self._first = name, number
        return self._blocks[number - self._first]
