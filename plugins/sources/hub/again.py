"""A checkpoint that was folded before is brought here once more, at the commit that it had, for as long as it is needed.

It comes as it came for its fold: headers first, then the weights, held against the Hub's digests. Whoever asks waits.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from threading import Event

from ....state.errors import NotPermitted, Unavailable
from ....state.records import Sighting
from ..directory import Directory
from ..interface import SCHEME, Later, Lost
from .backoff import Backoff
from .client import Gone, Limited
from .files import files_of
from .line import Line
from .spool import Spool
from .streaming import Vouching

GONE = "it was deleted or rewritten, or its owner hides it: they can bring that commit back, or HF_TOKEN be theirs"


class Again:
    """Brings checkpoints here, one after the other, into a folder of its own."""

    def __init__(
        self, root: Path, line: Line, *, most: int | None, tokens: bool, keep_free: Callable[[], int], stopped: Event
    ) -> None:
        """`most`: bytes above which weights never lie on this disk, or None; `tokens`: whether the vocabulary comes too.

        `keep_free`: gives the bytes of the disk that are to be left; all ends soon after `stopped` is set.
        """
        self._line, self._spool = line, Spool(root, line, stopped)
        self._most, self._tokens, self._keep_free, self._stopped = most, tokens, keep_free, stopped

    def bring(
        self,
        sighting: Sighting,
        begin: Callable[[int], None],
        advance: Callable[[int], None],
        rest: Callable[[str, float], None],
        patience: float,
    ) -> Sighting:
        """Return the sighting with all of it here, or with what gives that.

        `begin` is told the bytes to come, each time that it begins; `advance` those of each piece. `rest` is told why
        the Hub is waited for, and waits so many seconds; `patience`: at most so many in all. Raises Lost, Later or NotPermitted.
        """
        folder = self._spool.folder(sighting.name, sighting.revision)
        backoff, left = Backoff(), patience
        while True:
            before = self._line.quiet.backoff
            try:
                found = self._bring(sighting, folder, begin, advance)
            except (Gone, NotPermitted) as error:
                raise Lost(sighting, error if isinstance(error, NotPermitted) else Gone(str(error), GONE)) from None
            except Unavailable as error:
                self._line.quiet.heed(error)
                backoff = backoff.failed(time.time(), error.seconds if isinstance(error, Limited) else None)
                until = max(backoff.until, self._line.quiet.until)
                left -= (seconds := until - time.time())
                if left < 0 or self._stopped.is_set():
                    raise Later(str(error), until) from None
                rest(str(error), seconds)
            else:
                self._line.quiet.went_well(before)
                return found

    def _bring(
        self, sighting: Sighting, folder: Path, begin: Callable[[int], None], advance: Callable[[int], None]
    ) -> Sighting:
        self._line.quiet.check()
        repo, feed = sighting.place.removeprefix(SCHEME), None
        repository = files_of(repo, sighting.revision, self._stopped.is_set, tokens=self._tokens)
        begin(repository.nbytes)
        self._spool.bring_headers(repository, folder)
        if self._most is not None and repository.nbytes > self._most:
            feed = Vouching(self._line, repository, folder).go_on(advance, self._stopped.is_set)
        else:
            self._spool.bring(repository, folder, advance, keep_free=self._keep_free)
        found = Directory(folder.parent).sight(folder)
        stamps = found.stamps if found else ()
        return replace(sighting, folder=str(folder), stamps=stamps, files=repository.holds, feed=feed)
