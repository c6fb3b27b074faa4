"""Backoff: for how long whoever failed is left alone; the longer the more often, at random, and as they ask for."""

import random
from dataclasses import dataclass

FIRST, LONGEST = 5.0, 900.0  # seconds


@dataclass(frozen=True)
class Backoff:
    """How often something failed in a row, and until when it rests."""

    failures: int = 0
    until: float = 0.0  # wall-clock seconds, so that it outlives a restart

    def failed(self, now: float, asked: float | None = None) -> "Backoff":
        """Return it after one more failure; `asked`: the seconds of rest that were asked for.

        Full jitter: many who failed together must not come back together.
        """
        longest = min(LONGEST, FIRST * 2**self.failures)
        rest = random.uniform(0, longest)  # noqa: S311 - no secret
        if asked is not None:
            rest = min(max(asked, 0.5 * longest), LONGEST) + random.uniform(0, FIRST)  # noqa: S311
        return Backoff(min(self.failures + 1, 16), now + rest)

    def rests(self, now: float) -> bool:
        """Whether it is to be left alone; a clock that was set back lengthens no rest."""
        return now < self.until <= now + LONGEST + FIRST
