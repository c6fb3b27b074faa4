"""The line to the Hub: bytes of a file, in order, over as many connections as that takes, and no faster than is allowed.

All that fetches weights shares one, so that what is allowed is for all together, and one who is told to wait waits for all.
"""

import random
import time
from collections.abc import Callable, Generator
from contextlib import closing
from threading import Lock

from huggingface_hub import hf_hub_url

from ....state.errors import Unavailable
from .backoff import Quiet, Resting
from .client import Gone, Limited, answering, opened, within
from .files import Remote, Repository

CUTS = 5  # in a row, without a byte in between, after which a download is left for later
PACE = 600.0  # seconds of one connection, after which another one goes on

# Seconds without a byte of a weight file, after which another connection goes on: a stop waits for no more.
SILENCE = 5.0

Stopped = Callable[[], bool]


class Line:
    """What all share who fetch weights."""

    def __init__(self, bandwidth: int, quiet: Quiet | None = None) -> None:
        """`bandwidth`: bytes a second, 0 for all there is; `quiet`: when to ask nothing."""
        self.quiet = quiet or Quiet()
        self._bandwidth, self._due = bandwidth, 0.0  # monotonic seconds when all that came may have come
        self._lock = Lock()

    def url(self, repository: Repository, file: Remote) -> str:
        """Return where to ask for a file. Raises Resting while nothing is to be asked."""
        self.quiet.check()
        return hf_hub_url(repository.repo, file.name, revision=repository.commit)

    def pieces(
        self, repository: Repository, file: Remote, span: tuple[int, int], stopped: Stopped
    ) -> Generator[bytes, None, None]:
        """Yield the bytes of a file from one to another (exclusive), in order; close it where not all are taken.

        A cut connection is taken up where it broke. Raises Unavailable if the Hub breaks off again and again, and soon
        after `stopped` says so.
        """
        (done, end), cuts = span, 0
        while done < end:
            before = done
            try:
                with closing(self._connection(repository, file, (done, end), stopped)) as pieces:
                    for piece in pieces:
                        done += len(piece)
                        yield piece
                if done < end:
                    raise Unavailable("it broke off")
            except (Limited, Gone, Resting):
                raise
            except Unavailable:
                cuts = 1 if done > before else cuts + 1
                if stopped() or cuts >= CUTS:
                    raise
                rest(random.uniform(0, 0.5 * 2**cuts), stopped)  # noqa: S311 - no secret

    def _connection(
        self, repository: Repository, file: Remote, span: tuple[int, int], stopped: Stopped
    ) -> Generator[bytes, None, None]:
        """Yield what one connection gives of them."""
        (done, end), last = span, span[1] if span[1] < file.size else None
        with (
            answering(repository.repo),
            within(PACE, stopped, SILENCE),
            opened(self.url(repository, file), done, last) as (at, pieces),
        ):
            passed = done - at
            for piece in pieces:
                fresh = piece[passed:] if passed < len(piece) else b""
                passed = max(passed - len(piece), 0)
                if fresh := fresh[: end - done]:
                    done += len(fresh)
                    yield fresh
                    self._slow_down(len(fresh), stopped)
                if done >= end:
                    return

    def _slow_down(self, nbytes: int, stopped: Stopped) -> None:
        """Wait as long as so many bytes more may take, beside all that others fetch."""
        if self._bandwidth:
            with self._lock:
                now = time.monotonic()
                self._due = max(self._due, now) + nbytes / self._bandwidth
                ahead = self._due - now
            rest(ahead, stopped)


def rest(seconds: float, stopped: Stopped) -> None:
    """Wait so long, or until soon after a stop."""
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0 and not stopped():
        time.sleep(min(left, 0.1))
