"""Backoff: for how long whoever failed is left alone; the longer the more often, at random, and as they ask for."""

import random
import time
from dataclasses import dataclass

from ....state.errors import Unavailable

FIRST, LONGEST = 5.0, 900.0  # seconds
MOST_ASKED = 86400.0  # seconds: for no longer is anybody left alone who asks for that


@dataclass(frozen=True)
class Backoff:
    """How often something failed in a row, and until when it rests."""

    failures: int = 0
    until: float = 0.0  # wall-clock seconds, so that it outlives a restart
    rest: float = LONGEST  # seconds from when it failed until then

    def failed(self, now: float, asked: float | None = None) -> "Backoff":
        """Return it after one more failure; `asked`: the seconds of rest that were asked for.

        Full jitter: many who failed together must not come back together.
        """
        longest = min(LONGEST, FIRST * 2**self.failures)
        rest = random.uniform(0, longest)  # noqa: S311 - no secret
        if asked is not None:
            rest = min(max(asked, 0.5 * longest), MOST_ASKED) + random.uniform(0, FIRST)  # noqa: S311
        return Backoff(min(self.failures + 1, 16), now + rest, rest)

    def rests(self, now: float) -> bool:
        """Whether it is to be left alone; a clock that was set back lengthens no rest."""
        return now < self.until <= now + max(self.rest, LONGEST) + FIRST


class Resting(Unavailable):
    """The Hub was not asked: it is left alone for a while."""


class Quiet:
    """Whether the Hub may be asked at all: one who is told to wait waits for all the others too."""

    def __init__(self) -> None:
        self.backoff = Backoff()
        self.why = "it failed before"  # in an earlier life

    @property
    def rests(self) -> bool:
        """Whether nothing is to be asked now."""
        return self.backoff.rests(time.time())

    @property
    def until(self) -> float:
        """Return until when nothing is to be asked, in wall-clock seconds; 0 if it may be now."""
        return self.backoff.until if self.rests else 0.0

    def check(self) -> None:
        """Raise Resting where nothing is to be asked now."""
        if told := self.told:
            raise Resting(told, "it is asked again later")

    def heed(self, error: Exception) -> None:
        """Ask nothing for as long as an error asks everybody for; a longer rest stays."""
        if not getattr(error, "everybody", False):
            return
        longer = self.backoff.failed(time.time(), getattr(error, "seconds", None))
        if not self.rests or longer.until > self.backoff.until:
            self.backoff, self.why = longer, str(error)

    def went_well(self, before: Backoff) -> None:
        """Rest no more; `before`: as it was when that began which went well: others may have been told to wait since."""
        if self.backoff is before:
            self.backoff, self.why = Backoff(), ""

    @property
    def told(self) -> str:
        """Why nothing is asked now; empty if it may be."""
        return f"the Hub is left alone for a while: {self.why}" if self.rests else ""
