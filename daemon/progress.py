"""How far a long piece of work is, and the way to stop it: written by the folding thread, read by any other."""

import threading
import time
from collections.abc import Callable

from ..state.errors import Abandoned


class Progress:
    """Weights and bytes done of one piece of work after another; `abandon` ends it at the next step."""

    def __init__(self, show: "Callable[[Progress], None]" = lambda progress: None) -> None:
        self._show = show  # called at each step, for work that nobody watches from another thread
        self.abandon = threading.Event()
        self.doing = ""
        self.weights = self.all_weights = 0
        self.nbytes = self.all_bytes = 0
        self.seconds: dict[str, float] = {}  # by piece of work that ended
        self._since = time.monotonic()

    def begin(self, doing: str, weights: int, nbytes: int) -> None:
        """Begin a piece of work of so many weights and bytes; the one before has ended."""
        self.end()
        self.doing, self._since = doing, time.monotonic()
        self.weights = self.nbytes = 0
        self.all_weights, self.all_bytes = weights, nbytes

    def end(self) -> None:
        """End the piece of work, and note its seconds."""
        if self.doing:
            self.seconds[self.doing] = round(time.monotonic() - self._since, 3)
        self.doing = ""

    def advance(self, nbytes: int) -> None:
        """So many bytes more are done. Raises Abandoned if somebody asked for that."""
        if self.abandon.is_set():
            raise Abandoned
        self.nbytes += nbytes
        self._show(self)

    def next_weight(self) -> None:
        """One weight more is done."""
        self.weights += 1

    def seconds_left(self) -> float | None:
        """Return how long the piece of work still takes at the pace so far."""
        elapsed = time.monotonic() - self._since
        return elapsed * (self.all_bytes - self.nbytes) / self.nbytes if self.nbytes and elapsed > 1 else None

    def __str__(self) -> str:
        if not self.all_weights:
            return self.doing or "starting"
        left = self.seconds_left()
        ending = f", {left:.0f} s left" if left is not None else ""
        done = f"{self.weights}/{self.all_weights} weights, {self.nbytes / 1e6:.0f} of {self.all_bytes / 1e6:.0f} MB"
        return f"{self.doing} {done}{ending}"
