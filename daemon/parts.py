"""The parts of one merge that runs: opened under its lock, made good, closed; and how things stand with all of them."""

import logging
import os
import sqlite3
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, Self

from ..plugins.sources.interface import Room
from ..state.committing import Commit
from ..state.disk_errors import meaning
from ..state.errors import (
    Busy,
    Damaged,
    DiskFails,
    DiskFull,
    MergdError,
    Misconfigured,
    Unavailable,
)
from ..state.history import History
from ..state.lock import Lock
from ..state.store import Store
from .desk import Desk
from .hooking import Hooking
from .inbox import STOPPING, Inbox, Message
from .intake import Intake
from .judging import Given
from .method import Method
from .opening import Merge, open_merge
from .preparing import Preparing
from .progress import Progress
from .pushing import Pushing
from .recovery import recover
from .retention import Keep
from .scanning import Scanning
from .scrubbing import Scrubbing
from .settings import Settings
from .sources import make_sources
from .status import known, status, write_log, write_status
from .upkeep import Upkeep
from .working import Working

log = logging.getLogger(__name__)

Told = Callable[[dict[str, Any], History, Given], None]


class Parts:
    """One merge, held by its lock."""

    def __init__(
        self, settings: Settings, doing: str, show: Callable[[Progress], None] = lambda progress: None
    ) -> None:
        self.settings = settings
        self.reread: Callable[[], Settings] = lambda: settings  # at a reload
        self.prepares = False  # for the next fold, while nothing else is to be done
        self.taken: Callable[[Settings], None] = lambda settings: None  # after one
        self.told: Told = lambda found, history, given: None  # with the status, at each time that it is told
        self.kept: Callable[[MergdError], None] = lambda error: None  # after one that brought a bad configuration
        self.turned: Callable[[], None] = lambda: None  # after each turn
        self._doing, self._show = doing, show
        self._store = Store(settings.state)
        self._lock = Lock(self._store.lock)
        self._inbox = Inbox()
        self._told_at = 0.0  # monotonic seconds
        self._told_trouble = False
        self._mark: str | None = None
        self._stopping = False

    # ----------------------------------------------------------------------------------------------------- its life

    def __enter__(self) -> Self:
        if not self._store.database.exists():
            raise Misconfigured(f"{self.settings.state} holds no merge", self._store.way_in())
        self._store.make_room()
        self._lock.take(self._doing)
        try:
            self._history = History(self._store.database, write=True)
        except BaseException:
            self._lock.release()
            raise
        try:
            self._open()
        except BaseException:
            self._history.close()
            self._lock.release()
            raise
        return self

    def _open(self) -> None:
        """Open the merge, and make good whatever a crash left."""
        settings, history, store = self.settings, self._history, self._store
        self._pushing = Pushing(settings, history, store, lambda: self.post("told"))
        self._hooking = Hooking(settings, history, store, lambda: self.post("told"))
        self._merge = merge = self._with_pushing(open_merge(settings, history, Progress(self._show)))
        self._sources = make_sources(settings)
        self._sources.begin(history.pins().get("sources"), lambda: self.post("rescan"), self._room)
        self._intake = Intake(
            merge.base, history, settings, lambda: self.post("rescan"), self._method, self._sources.remote
        )
        self._scanning = Scanning(self._sources, self._intake)
        sight, commit, hooks = self._sources.sight, Commit(store, history), list(merge.hooks)
        self._work = Working(settings, merge, store, history, commit, sight, self._doing)
        self._work.share(self._sources.line)
        self._desk = Desk(history, store, self._intake, self._work.tasks, sight, hooks, Keep.of(settings))
        store.hold_ballast()
        recover(commit, history)
        with self._minding_the_disk():
            self._hooking.open()
            self._work.worker.after_move()
        wake = partial(self.post, "look")
        self._upkeep = Upkeep(store.database, wake)
        self._preparing = Preparing(store, wake)
        self._scrubbing = Scrubbing(store, history, lambda: self.settings.scrub, lambda: self._desk.hooks, wake)
        self._work.wake, self._work.settle = wake, self._settle_soon
        self._work.contain = lambda version, damage: self._scrubbing.contain(version, damage.files, folding=True)
        self._desk.verifying = self._scrubbing.verifying
        self._scrubbing.look_at_head()
        self.tell(log_too=True)

    def _with_pushing(self, merge: Merge) -> Merge:
        """Return the merge with the hook that is none of its plugins."""
        return replace(merge, hooks={**merge.hooks, **self._pushing.hooks})

    def _room(self) -> Room:
        """Return the room for what lies elsewhere."""
        return self._work.worker.room()

    def _method(self) -> Method:
        """Return by which method the next checkpoint is folded."""
        return self._merge.method_at(self._history.head())

    def __exit__(self, *error: object) -> None:
        self._stopping = True
        self._preparing.give_way()
        self._pushing.close()
        try:
            with self._minding_the_disk():
                self._hooking.close()
            with self._minding_the_disk():
                self._work.abandon()
            self.answer_stopping()
            with self._minding_the_disk():
                self.tell(live=self._live() | {"daemon": None})
        finally:
            self._sources.close()
            self._intake.close()
            self._work.close()
            self._preparing.close()
            self._upkeep.close()
            self._scrubbing.close()
            self._history.close()
            self._lock.release()

    def _settle_soon(self, row: int) -> None:
        """Have a checkpoint that settles again looked at, once it may be quiet."""
        if self._history.checkpoints.get(row).state == "settling":
            self._scanning.settles_in(self.settings.quiet)

    def post(self, message: Message) -> None:
        """Leave a message, from any thread or signal handler."""
        self._inbox.post(message)

    def stop(self) -> None:
        """End `run` soon, abandoning a fold; from any thread or signal handler."""
        self._stopping = True
        self._inbox.post("look")

    def answer_stopping(self) -> None:
        """Tell everybody who still waits for an answer that there will be none."""
        self._desk.close(STOPPING)
        self._inbox.close()

    @contextmanager
    def _minding_the_disk(self) -> Iterator[None]:
        """Let what fails because of the disk wait until it is well. Raises Damaged where nothing can wait."""
        try:
            yield
        except (OSError, sqlite3.Error) as error:
            known = meaning(error)
            if known is error:
                raise
            if not isinstance(known, DiskFull | DiskFails):
                raise known from error
            self._work.worker.disk.fail(known)

    # ---------------------------------------------------------------------------------------------- how things stand

    @property
    def refused(self) -> bool:
        """Whether a checkpoint was refused in this life."""
        return self._work.refused or self._intake.refused > 0

    @property
    def trouble(self) -> str:
        """What keeps it from going on by itself: a full disk, a watched folder that is gone."""
        return self._work.worker.trouble or self._scanning.trouble or self._scrubbing.trouble

    @property
    def steps(self) -> int | None:
        """How many steps were taken by what is waited for: the work under way, or what gives way to it; None if nothing is."""
        if (running := self._work.running) is not None:
            return running.steps
        return self._preparing.steps if self._preparing.busy and self._work.waits() else None

    @property
    def deadline(self) -> float | None:
        """Until when (monotonic seconds) a program of the user's is waited for, if one is."""
        running = self._work.running
        return running.deadline if running is not None else None

    @property
    def brief(self) -> str:
        """What is going on, in a few words."""
        try:
            paused, head = self._history.paused(), self._history.head()
        except (OSError, sqlite3.Error) as error:  # which a turn minds
            return f"the history cannot be read: {error}"
        stands = self.trouble or (f"folding is paused: {paused['why'] or paused['who']}" if paused else "")
        waiting = f"waiting for checkpoints; the head is {head or 'the base model'}"
        return self._work.brief or stands or str(self._preparing) or waiting

    def _live(self) -> dict[str, Any]:
        """Return what only this process knows."""
        return known(self.settings) | {
            "doing": str(self._work) or str(self._preparing),
            "prepared": self._preparing.told(self._history.head()),
            "trouble": self.trouble,
            "sources": self._sources.trouble,
            "push": self._pushing.told(),
            "telling": self._hooking.told(),
            "daemon": {"pid": os.getpid(), "doing": self._doing},
            "waits": {str(row): text for row, text in self._intake.waits.items()},
        }

    def _stuck(self, rows: Collection[int]) -> MergdError | None:
        """Return what keeps a fold of these checkpoints, which was asked for, from being done now."""
        if self._work.busy:
            return None
        if self._work.worker.trouble:
            return Unavailable(self._work.worker.trouble, "it stays queued, and is folded when that is mended")
        if self._scrubbing.trouble:
            return self._damage()
        if self._history.paused():
            return Busy("folding is paused", "it stays queued; to go on: mergd resume")
        if (why := self._intake.unfetched(rows)) and self._inbox.empty() and not self._scanning.hinted:
            return Unavailable(why, "it stays queued, and is folded when it is here")
        return None

    def left_over(self) -> MergdError | None:
        """Return what kept ready checkpoints from being folded; that it is paused is as somebody wanted it."""
        ready = len(self._history.checkpoints.ready())
        if self._scrubbing.trouble or self._scrubbing.fell_back:
            return self._damage()
        if self.trouble:
            return Unavailable(self.trouble, "nothing is lost: run it again when that is mended")
        if why := self._sources.trouble or self._intake.unfetched():
            return Unavailable(why, "the log says more; run it again later")
        if (waits := self._work.tasks.put_off()) is not None:
            return waits
        if ready and self._history.paused():
            log.warning("folding is paused, and %d checkpoints wait; to go on: mergd resume", ready)
        elif ready:
            return Unavailable(f"{ready} checkpoints wait for another attempt", "the log says why; run it again")
        return None

    def _damage(self) -> Damaged:
        """Return what was found wrong with the head, as what pauses folding says it."""
        paused = self._history.paused()
        return Damaged(paused["why"] if paused else self._scrubbing.trouble, "mergd status says how to go on")

    def idle(self) -> bool:
        """Whether nothing is folding, about to be folded, being hashed or about to be quiet."""
        resting = (
            self._work.free
            and self._upkeep.resting
            and self._scrubbing.resting
            and not (self._intake.hashing or self._sources.busy or self._pushing.busy or self._hooking.busy)
        )
        return resting and not self._scanning.planned and not self._work.waits() and self._inbox.empty()

    # --------------------------------------------------------------------------------------------------- for readers

    def tell(self, *, log_too: bool = False, live: dict[str, Any] | None = None) -> None:
        """Write the files that readers without the database look at."""
        self._told_at, self._told_trouble = time.monotonic(), bool(self.trouble)
        try:
            found = status(self._history, self._store, self._live() if live is None else live)
            self.told(found, self._history, self._intake.given + self._work.given)
            write_status(self._store, found)
            if log_too:
                write_log(self._history, self._store)
        except OSError as error:
            log.error("status.json and log.jsonl are out of date: %s", error)
