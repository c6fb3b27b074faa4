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
from ..interface import Later, Lost
from .backoff import Backoff
from .client import Gone, Limited
from .files import Repository, files_of
from .line import Line
from .namespace import SCHEME
from .spool import Spool

GONE = "it was deleted or rewritten, or its owner hides it: they can bring that commit back, or HF_TOKEN be theirs"


class Again:
    """Brings checkpoints here, one after the other, into a folder of its own."""

    def __init__(self, root: Path, *, bandwidth: int, tokens: bool, stopped: Event) -> None:
        """`bandwidth`: bytes a second, 0 for all there is; `tokens`: whether the vocabulary comes too; it ends soon after `stopped`."""
        self._spool, self._tokens, self._stopped = Spool(root, Line(bandwidth), stopped), tokens, stopped

    def bring(
        self,
        sighting: Sighting,
        begin: Callable[[int], None],
        advance: Callable[[int], None],
        rest: Callable[[str], None],
        patience: float,
    ) -> Sighting:
        """Return the sighting with all of it here.

        `begin` is told the bytes to come, each time that it begins; `advance` those of each piece; `rest` why it waits for
        the Hub, which it does for at most so many seconds. Raises Lost, Later or NotPermitted.
        """
        backoff, left = Backoff(), patience
        while True:
            try:
                return self._bring(sighting, begin, advance)
            except (Gone, NotPermitted) as error:
                raise Lost(sighting, error if isinstance(error, NotPermitted) else Gone(str(error), GONE)) from None
            except Unavailable as error:
                backoff = backoff.failed(time.time(), error.seconds if isinstance(error, Limited) else None)
                left -= (seconds := backoff.until - time.time())
                if left < 0 or self._stopped.is_set():
                    raise Later(str(error), backoff.until) from None
                rest(str(error))
                self._stopped.wait(seconds)

    def _bring(self, sighting: Sighting, begin: Callable[[int], None], advance: Callable[[int], None]) -> Sighting:
        repository = self._files_of(sighting)
        begin(repository.nbytes)
        folder = self._spool.bring_headers(repository)
        self._spool.bring(repository, folder, advance)
        found = Directory(folder.parent).sight(folder)
        return replace(sighting, folder=str(folder), stamps=found.stamps if found else (), files=repository.holds)

    def _files_of(self, sighting: Sighting) -> Repository:
        repo = sighting.place.removeprefix(SCHEME)
        return files_of(repo, sighting.revision, self._stopped.is_set, tokens=self._tokens)
