"""Preparing: what a fold needs of the head's slots alone is computed while the daemon has nothing else to do, on a thread aside.

It never runs while a checkpoint is folded: two matrices would be decomposed at once. A fold waits for the weight that is being
prepared, which it needs itself. What is prepared is a cache (`state/prepared.py`): a fold without it has the same bytes.
"""

import json
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from ..plugins.rules.interface import Factored, Slots, Statistic, prepares
from ..state.prepared import Place, Preparation, Prepared, Rows, place_of
from ..state.records import Version, Weight
from ..state.store import Store, folder_name
from .base import Base
from .blocks import blocks_of, machine_of, threads_for
from .device import Home, resolve, send, send_slots
from .machine import be_last, made_on, trim_memory, with_threads
from .method import Method
from .settings import Settings
from .slots import KeptSlots

log = logging.getLogger(__name__)

RETRY_AFTER = 600.0  # seconds, after what ended early: room may have come


@dataclass(frozen=True)
class Wanted:
    """What is to be prepared for one head."""

    version: Version
    base: Base
    method: Method
    settings: Settings
    room: int  # bytes of the disk that all of it may take
    spare: Callable[[], int]  # bytes of the disk that nobody needs, at any moment


class Preparing:
    """Prepares for one merge's head."""

    def __init__(self, store: Store, wake: Callable[[], None]) -> None:
        self._store, self._wake = store, wake
        self._thread = ThreadPoolExecutor(1, "mergd-prepare", be_last)
        self._stop = threading.Event()
        self._future: Future[bool] | None = None
        self._wanted: Wanted | None = None
        self._ready = self._all = 0  # weights, of those that have something to prepare
        self._nbytes = 0
        self._rests_for: tuple[object, ...] = ()
        self._rests_until = 0.0  # monotonic seconds

    # ------------------------------------------------------------------------------------------- on the loop's thread

    @property
    def busy(self) -> bool:
        """Whether something is being prepared."""
        return self._future is not None and not self._future.done()

    @property
    def steps(self) -> int:
        """How many weights are prepared, of those that have something to prepare."""
        return self._ready

    def __str__(self) -> str:
        return f"preparing {self._ready}/{self._all} weights" if self.busy else ""

    def told(self, head: Version | None) -> dict[str, int] | None:
        """Return how much is prepared for the head, if anything is or will be."""
        if head is None or self._wanted is None or self._wanted.version.number != head.number or not self._all:
            return None
        return {"weights": self._ready, "of": self._all, "bytes": self._nbytes}

    def begin(self, head: Version | None, wanted: Callable[[Version], Wanted]) -> bool:
        """Begin with what is not prepared for the head yet; returns whether there may be something."""
        if self._future is not None or head is None or not head.slots_kept or not self._is_time(head):
            return False
        self._wanted = wanted(head)
        self._ready = self._all = self._nbytes = 0
        self._stop.clear()
        self._future = self._thread.submit(self._prepare, self._wanted)
        self._future.add_done_callback(lambda _: self._wake())
        return True

    def _is_time(self, head: Version) -> bool:
        return self._rests_for != self._as_it_is(head) or time.monotonic() >= self._rests_until

    def _as_it_is(self, version: Version) -> tuple[object, ...]:
        """Return what is the same for as long as the head is, and nobody takes files away."""
        try:
            changed = folder_of(version, self._store).stat().st_mtime_ns
        except OSError:
            changed = None
        return version.number, version.digest, changed

    def again(self) -> None:
        """Look once more at what is to be prepared: the settings are others now."""
        self.give_way()
        self._rests_for = ()

    def give_way(self) -> None:
        """Stop after the weight that is being prepared."""
        self._stop.set()

    def take(self) -> bool:
        """Take note of how it ended, if it has; returns whether that is so."""
        if self._future is None or not self._future.done():
            return False
        future, self._future, wanted = self._future, None, self._wanted
        assert wanted is not None
        try:
            whole = future.result()
        except Exception as error:  # noqa: BLE001 - it is a help: folding does without, and says what is wrong with the head
            log.warning("nothing more is prepared for %s: %s", wanted.version, error)
            whole = False
        if not self._stop.is_set():
            self._rests_for = self._as_it_is(wanted.version)
            self._rests_until = float("inf") if whole else time.monotonic() + RETRY_AFTER
        trim_memory()
        return True

    def close(self) -> None:
        """Stop, and end the thread."""
        self.give_way()
        self._thread.shutdown(cancel_futures=True)

    # ---------------------------------------------------------------------------------------------- on its own thread

    def _prepare(self, wanted: Wanted) -> bool:
        """Prepare weight by weight until all is there; returns whether it is: else there was no room, or no time."""
        began, version = time.monotonic(), wanted.version
        with ExitStack() as stack:
            kept = KeptSlots(self._store.slot_layouts(version.number), stack, hashed=False)
            plan, key = _plan(wanted, kept), _key(version, self._store, wanted.settings)
            self._all = len(plan)
            if not plan:
                return True
            places = {part.place for parts in plan.values() for part in parts}
            into = stack.enter_context(Preparation(folder_of(version, self._store), key, places.__contains__))
            fresh = len(places) > len(into.places)
            for w, parts in plan.items():
                with with_threads(threads_for(w, wanted.method, wanted.settings.threads)):
                    if not all(self._add(wanted, into, w, kept, part) for part in parts):
                        return False
                self._ready += 1
                self._nbytes = into.nbytes
        if fresh:
            log.info("%s: %d weights are prepared, %.1f s", version, self._all, time.monotonic() - began)
        return True

    def _add(self, wanted: Wanted, into: Preparation, w: Weight, kept: KeptSlots, part: "_Part") -> bool:
        """Prepare one statistic of a weight, or of a block of its rows; returns whether it is there."""
        if part.place in into.places:
            return True
        if self._stop.is_set():
            return False
        found = part.prepare(w, kept, resolve(wanted.settings.device))
        nbytes = sum(tensor.nbytes for tensor in found.values())
        if into.nbytes + nbytes > wanted.room or nbytes > wanted.spare():
            log.info("%s: %d of %d weights are prepared: there is no more room", wanted.version, self._ready, self._all)
            return False
        into.add(part.place, found)
        return True


@dataclass(frozen=True)
class _Part:
    """One statistic of a weight, or of a block of its rows."""

    place: Place
    statistic: Statistic
    rows: Rows
    factors: bool  # whether its slot is kept as two factors

    def prepare(self, w: Weight, kept: KeptSlots, device: str) -> Slots:
        if not self.factors:
            slots = send_slots(kept.read(w, self.statistic, self.rows), device)
            return Home(device).bring_slots(self.statistic.prepare(slots, w))
        assert isinstance(self.statistic, Factored), "else it would be kept whole"
        return Home(device).bring_slots(self.statistic.prepare_factors(send(kept.factors(w), device), w))


def _plan(wanted: Wanted, kept: KeptSlots) -> dict[Weight, list[_Part]]:
    """Return what is to be prepared, by weight: in the blocks in which a fold takes it."""
    method = wanted.method
    memory = machine_of(wanted.settings, wanted.base, method).memory
    plan: dict[Weight, list[_Part]] = {}
    for w in wanted.base.weights:
        statistics = [statistic for statistic in method.keeps(w) if prepares(statistic)]
        factors = bool(statistics) and kept.rank(w) is not None
        blocks = ([None] if factors else blocks_of(w, method, memory)) if statistics and w.size else []
        parts = [_Part(place_of(w, s, rows, factors=factors), s, rows, factors) for s in statistics for rows in blocks]
        plan |= {w: parts} if parts else {}
    return plan


def folder_of(version: Version, store: Store) -> Path:
    """Return where what is prepared for folds onto a version lies."""
    return store.prepared / folder_name(version.number)


def prepared_for(version: Version | None, store: Store, settings: Settings) -> Prepared:
    """Return what is prepared for folds onto a version."""
    if version is None or not settings.prepare:
        return Prepared()
    return Prepared(folder_of(version, store), _key(version, store, settings))


def _key(version: Version, store: Store, settings: Settings) -> str:
    """Return what must be the same for the same bytes: the slots, as they lie there, and what computes."""
    stats = [(path.name, path.stat()) for path in store.files(version.number, "slots")]
    slots = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]
    return json.dumps([version.digest, slots, settings.threads, resolve(settings.device), made_on()])
