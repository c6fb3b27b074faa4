"""A checkpoint that was folded before is brought here once more, at the commit that it had, for as long as it is needed.

It comes as it came for its fold: headers first, then the weights, held against the Hub's digests. Whoever asks waits.
"""

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path

from ....state.errors import MergdError, NotPermitted, Unavailable
from ....state.records import Sighting
from ..directory import Directory
from ..interface import SCHEME, Later, Lost
from .backoff import Backoff
from .client import Gone, Limited
from .files import Repository, files_of
from .line import Line, Stopped
from .spool import NoRoom, Spool, with_headers
from .streaming import Vouching

GONE = "it was deleted or rewritten, or its owner hides it: they can bring that commit back, or HF_TOKEN be theirs"


Counting = Callable[[Sighting], Collection[str] | None]
"""Gives the weight files that are needed, of a sighting whose headers are here; None: all."""


@dataclass
class _Coming:
    """How far one is, over all tries."""

    sighting: Sighting
    folder: Path
    repository: Repository | None = None  # once its headers are here
    vouching: Vouching | None = None  # of what never lies here

    def here(self) -> Sighting:
        """Return its sighting, with what of it is here."""
        found = Directory(self.folder.parent).sight(self.folder)
        stamps = found.stamps if found else ()
        told = self.repository.told if self.repository else ""
        return replace(self.sighting, folder=str(self.folder), stamps=stamps, files=told)


class Again:
    """Brings checkpoints here, one after the other, into a folder of its own."""

    def __init__(
        self, root: Path, line: Line, *, most: int | None, tokens: bool, keep_free: Callable[[], int], stopped: Stopped
    ) -> None:
        """`most`: bytes above which weights never lie on this disk, or None; `tokens`: whether the vocabulary comes too.

        `keep_free`: gives the bytes of the disk that are to be left; all ends soon after `stopped` says so.
        """
        self._line, self._spool = line, Spool(root, line, stopped)
        self._most, self._tokens, self._keep_free, self._stopped = most, tokens, keep_free, stopped

    def bring(
        self, sighting: Sighting, begin: Callable[[int], None], advance: Callable[[int], None],
        rest: Callable[[str, float], None], counting: Counting, patience: float, midway: float,
    ) -> Sighting:  # fmt: skip
        """Return the sighting with all of it here that counts, or with what gives that.

        `begin` is told the bytes to come, each time that it begins; `advance` those of each piece. `rest` is told why
        the Hub is waited for, and waits so many seconds; `patience`: at most so many in all, `midway`: the same once
        bytes have come. Raises Lost or Later.
        """
        coming = _Coming(sighting, self._spool.folder(sighting.name, sighting.revision))
        backoff, waited = Backoff(), 0.0
        while True:
            before = self._line.quiet.backoff
            try:
                found = self._bring(coming, begin, advance, counting)
            except (Gone, NotPermitted) as error:
                raise _lost(sighting, error) from None
            except NoRoom as error:
                self._spool.leave(coming.folder)
                raise Later(str(error), time.time(), for_room=True) from None
            except Unavailable as error:
                backoff = self._after(error, backoff)
                until = max(backoff.until, self._line.quiet.until)
                waited += (seconds := until - time.time())
                if waited > (midway if self._held(coming) else patience) or self._stopped():
                    raise Later(str(error), until) from None
                rest(str(error), seconds)
            else:
                self._line.quiet.went_well(before)
                return found

    def _after(self, error: Unavailable, backoff: Backoff) -> Backoff:
        self._line.quiet.heed(error)
        return backoff.failed(time.time(), error.seconds if isinstance(error, Limited) else None)

    def _held(self, coming: _Coming) -> int:
        """Return the bytes that came, and would have to come again if it were begun anew."""
        return coming.vouching.held if coming.vouching else self._spool.held(coming.folder)

    def _bring(
        self, coming: _Coming, begin: Callable[[int], None], advance: Callable[[int], None], counting: Counting
    ) -> Sighting:
        """Go on where the last try ended."""
        self._line.quiet.check()
        repository = coming.repository = coming.repository or self._headers(coming, counting)
        begin(repository.nbytes)
        if self._most is not None and repository.nbytes > self._most:
            coming.vouching = coming.vouching or self._vouching(coming, repository)
            feed = coming.vouching.go_on(advance, self._stopped)
            return replace(coming.here(), feed=feed)
        self._spool.check_room(self._keep_free, repository.nbytes - self._spool.held(coming.folder))
        self._spool.bring(repository, coming.folder, advance, keep_free=self._keep_free)
        return coming.here()

    def _headers(self, coming: _Coming, counting: Counting) -> Repository:
        """Bring the headers; of weight files that do not count not even these stay."""
        sighting, folder = coming.sighting, coming.folder
        repo = sighting.place.removeprefix(SCHEME)
        repository = files_of(repo, sighting.revision, self._stopped, tokens=self._tokens)
        self._spool.bring_headers(repository, folder)
        names = counting(coming.here())
        if names is not None:
            for file in repository.files:
                if file.has_weights and file.name not in names:
                    (folder / file.name).unlink(missing_ok=True)
            repository = repository.only(names)
        return with_headers(repository, folder)

    def _vouching(self, coming: _Coming, repository: Repository) -> Vouching:
        return Vouching(self._line, repository, coming.folder, lambda error: _lost(coming.sighting, error))


def _lost(sighting: Sighting, error: MergdError) -> Lost:
    return Lost(sighting, error if isinstance(error, NotPermitted) else Gone(str(error), GONE))
