"""How far a long piece of work is, and the way to stop it: written by the folding thread, read by any other."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from ..state.errors import Abandoned
from ..state.wording import size


@dataclass(frozen=True)
class Wait:
    """A wait for what others do, which has an end."""

    what: str
    seconds: float  # that it lasts at most
    since: float = field(default_factory=time.monotonic)  # monotonic seconds

    @property
    def until(self) -> float:
        """When it ends at the latest, in monotonic seconds."""
        return self.since + self.seconds

    def __str__(self) -> str:
        return f"waiting for {self.what}, {time.monotonic() - self.since:.0f} s of {self.seconds:.0f} s"


class Progress:
    """Weights and bytes done of one piece of work after another; `abandon` ends it at the next step."""

    def __init__(self, show: "Callable[[Progress], None]" = lambda progress: None) -> None:
        self._show = show  # called at each step, for work that nobody watches from another thread
        self.abandon = threading.Event()
        self.doing = ""
        self.steps = 0  # that were taken, of whatever kind: as long as this grows, nothing hangs
        self.wait: Wait | None = None  # while others are at work: no step of ours is to be expected before it ends
        self.weights = self.all_weights = 0
        self.nbytes = self.all_bytes = 0
        self.seconds: dict[str, float] = {}  # by piece of work that ended
        self._since = time.monotonic()
        self._busy: dict[str, float] = {}  # seconds of threads, by step, in this piece of work
        self._adding = threading.Lock()

    def begin(self, doing: str, weights: int, nbytes: int) -> None:
        """Begin a piece of work of so many weights and bytes; the one before has ended."""
        self.end()
        self.steps += 1
        self.doing, self._since = doing, time.monotonic()
        self.weights = self.nbytes = 0
        self.all_weights, self.all_bytes = weights, nbytes

    def end(self) -> None:
        """End the piece of work, and note its seconds: by step, where it has steps that overlap.

        Then what it took is split among them by how long threads were busy with each, so that all steps add up to the whole.
        """
        if self.doing:
            took, whole = time.monotonic() - self._since, sum(self._busy.values())
            for step, busy in (self._busy if whole else {self.doing: 1.0}).items():
                self.seconds[step] = round(self.seconds.get(step, 0.0) + took * busy / (whole or 1.0), 3)
        self.doing, self._busy = "", {}
        self.steps += 1

    @contextmanager
    def busy(self, step: str) -> Iterator[None]:
        """Note that the calling thread is busy with a step of the piece of work; several threads may be at once."""
        began = time.monotonic()
        try:
            yield
        finally:
            with self._adding:
                self.steps += 1
                self._busy[step] = self._busy.get(step, 0.0) + time.monotonic() - began

    @contextmanager
    def waiting(self, what: str, seconds: float) -> Iterator[None]:
        """Note that the piece of work waits for others, so long at most."""
        self.wait = Wait(what, seconds)
        try:
            yield
        finally:
            self.steps, self.wait = self.steps + 1, None

    @property
    def deadline(self) -> float | None:
        """Until when others are waited for, in monotonic seconds; None while nobody is."""
        return wait.until if (wait := self.wait) is not None else None

    def advance(self, nbytes: int) -> None:
        """So many bytes more are done. Raises Abandoned if somebody asked for that."""
        if self.abandon.is_set():
            raise Abandoned
        self.nbytes += nbytes
        self.steps += 1
        self._show(self)

    def stopped(self) -> bool:
        """Whether somebody asked for the end; whoever reads from elsewhere asks at each piece that came, which is a step."""
        self.steps += 1
        return self.abandon.is_set()

    def next_weight(self) -> None:
        """One weight more is done."""
        self.weights += 1

    def seconds_left(self) -> float | None:
        """Return how long the piece of work still takes at the pace so far."""
        elapsed = time.monotonic() - self._since
        return elapsed * (self.all_bytes - self.nbytes) / self.nbytes if self.nbytes and elapsed > 1 else None

    def of(self, name: str) -> str:
        """Return in a few words how far what is being done to `name` is."""
        if (wait := self.wait) is not None:
            return f"{wait} ({name})"
        doing = f"{self.doing or 'starting'} {name}"
        return f"{doing} {self.weights}/{self.all_weights} weights{self._left()}" if self.all_weights else doing

    def _left(self) -> str:
        left = self.seconds_left()
        return f", {left:.0f} s left" if left is not None else ""

    def __str__(self) -> str:
        if (wait := self.wait) is not None:
            return str(wait)
        if not self.all_weights:
            done = f": {size(self.nbytes)} of {size(self.all_bytes)}" if self.all_bytes else ""
            return f"{self.doing}{done}" if self.doing else "starting"
        done = f"{self.weights}/{self.all_weights} weights, {self.nbytes / 1e6:.0f} of {self.all_bytes / 1e6:.0f} MB"
        return f"{self.doing} {done}{self._left()}"
