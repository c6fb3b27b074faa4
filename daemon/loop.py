"""The loop: one thread takes messages and writes the history, while another one folds, one checkpoint at a time.

A message only says that there is something to do; what it is, is looked up. A command that finds no daemon runs this
same loop until it has its answer.
"""

import logging
import os
import time
from collections.abc import Callable
from typing import Any, Self

from ..state.committing import Commit
from ..state.errors import Abandoned, Busy, MergdError, Misconfigured, Unavailable
from ..state.history import History
from ..state.lock import Lock
from ..state.records import Checkpoint
from ..state.store import Store
from .control import Answer, Ask
from .deciding import preempts
from .desk import Desk
from .drafting import Drafting
from .hands import Hands
from .inbox import STOPPING, Inbox, Message
from .intake import Intake
from .judging import Job
from .machine import trim_memory
from .opening import make_source, open_merge, reopen_merge
from .progress import Progress
from .recovery import check_head, recover
from .requests import AnyRequest, Retry
from .scanning import Scanning
from .settings import Settings
from .status import write_log, write_status
from .worker import Worker

log = logging.getLogger(__name__)

TICK = 0.25  # seconds between looks at a running fold
TELL_EVERY = 0.5  # seconds between writings of status.json while one runs
NAP = 1.0  # seconds that the loop waits at most: a signal that another thread gets does not wake it


class Loop:
    """One merge, held by its lock."""

    def __init__(
        self, settings: Settings, doing: str, show: Callable[[Progress], None] = lambda progress: None
    ) -> None:
        self.settings = settings
        self._refused = False  # a checkpoint, in this life
        self.reread: Callable[[], Settings] = lambda: settings  # at a reload
        self.taken: Callable[[Settings], None] = lambda settings: None  # after one
        self._doing, self._show = doing, show
        self._store = Store(settings.state)
        self._lock = Lock(self._store.lock)
        self._inbox = Inbox()
        self._told_at = 0.0  # monotonic seconds
        self._stopping = False

    # ----------------------------------------------------------------------------------------------------- its life

    def __enter__(self) -> Self:
        if not self._store.database.exists():
            raise Misconfigured(f"{self.settings.state} holds no merge", "make one: mergd init --help")
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
        self._merge = merge = open_merge(settings, history, Progress(self._show))
        self._source = make_source(settings)
        self._intake = Intake(merge.base, history, settings, lambda: self.post("rescan"))
        self._scanning = Scanning(self._source, self._intake)
        commit = Commit(store, history)
        self._worker = Worker(settings, merge, store, history, commit, self._source.sight)
        self._desk = Desk(history, store, self._intake, self._source.sight, list(merge.hooks))
        self._drafting = Drafting(settings, merge, store, commit)
        recover(commit, history)
        self._worker.after_move()
        self._hands = Hands(settings.threads, self._drafting.draft, lambda: self.post("look"))
        self.tell(log_too=True)

    def __exit__(self, *error: object) -> None:
        self._stopping = True
        try:
            self._abandon()
            self.answer_stopping()
            self.tell(live=self._live() | {"daemon": None})
        finally:
            self._source.close()
            self._intake.close()
            self._hands.close()
            self._history.close()
            self._lock.release()

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

    def check_head(self) -> None:
        """Raise Damaged if what is published is not as it was written."""
        check_head(self._store, self._history)

    def watch(self, events: bool) -> None:
        """Let the watched folder's events wake the scan, or no more."""
        if events:
            self._source.watch(lambda: self.post("rescan"))
        else:
            self._source.close()

    def listen_at(self, socket: str) -> None:
        """Write where the control socket is, for those who find the lock taken."""
        self._lock.describe(self._doing, socket)

    # -------------------------------------------------------------------------------------------------------- turns

    def run(self, until: Callable[[], bool] = lambda: False) -> None:
        """Take turns until `until` says so, or until `stop`."""
        while not self._stopping and not until():
            self.turn()

    def turn(self, *, only_asked: bool = False) -> None:
        """Take the messages there are, see what is due, and keep one fold running (`only_asked`: if somebody waits)."""
        for message in self._inbox.take(self._patience()):
            self._act_on(message)
        if self._scanning.patience == 0:
            self._rescan()
        if self._hands.job is not None:
            self._look_at_fold()
        if self._hands.job is None and not self._stopping and (self._desk.waiting or not only_asked):
            self._start_fold()
        self._desk.answer_folds(self._stuck())

    def _stuck(self) -> MergdError | None:
        """Return what keeps an asked fold from being done now."""
        if self._hands.job is not None:
            return None
        if self._worker.trouble:
            return Unavailable(self._worker.trouble, "it stays queued, and is folded when that is mended")
        return Busy("folding is paused", "it stays queued; to go on: mergd resume") if self._history.paused() else None

    def left_over(self) -> MergdError | None:
        """Return what kept ready checkpoints from being folded; that it is paused is as somebody wanted it."""
        ready = len(self._history.checkpoints.ready())
        if self.trouble:
            return Unavailable(self.trouble, "nothing is lost: run it again when that is mended")
        if ready and self._history.paused():
            log.warning("folding is paused, and %d checkpoints wait; to go on: mergd resume", ready)
        elif ready:
            return Unavailable(f"{ready} checkpoints wait for another attempt", "the log says why; run it again")
        return None

    def idle(self) -> bool:
        """Whether nothing is folding, about to be folded, being hashed or about to be quiet."""
        resting = self._hands.job is None and not self._scanning.planned and not self._intake.hashing
        return resting and not self._can_fold() and self._inbox.empty()

    def ask(self, request: AnyRequest) -> Answer:
        """Carry out a request here and now, as a daemon would; returns its result or raises its error."""
        ask = Ask(request, f"uid {os.getuid()}")
        self.post(ask)
        while ask.outcome is None and not self._stopping:
            self.turn(only_asked=True)
        if isinstance(ask.outcome, MergdError):
            raise ask.outcome
        if ask.outcome is None:
            raise Abandoned
        return ask.outcome

    # ----------------------------------------------------------------------------------------------------- messages

    def _patience(self) -> float:
        if self._hands.job is not None:
            return 0.0 if self._hands.ended() else TICK
        if self._can_fold():
            return 0.0
        return min(NAP, self._scanning.patience)

    def _act_on(self, message: Message) -> None:
        if isinstance(message, Ask):
            try:
                if preempts(message.request, self._history):
                    self._abandon()
            finally:
                self._desk.carry_out(message)
            if isinstance(message.request, Retry):
                self._rescan()
            self._worker.after_move()
            self.tell(log_too=True)
        elif message == "rescan":
            self._scanning.hint()
        elif message == "upkeep":
            self._worker.after_move()
            self._history.tidy()
            self.tell(log_too=True)
        elif message == "reload":
            self._reload()

    def _reload(self) -> None:
        """Read the configuration again; a bad one is told of, and the old one stays."""
        try:
            settings = self.reread()
            merge = reopen_merge(self._merge, self.settings, settings, self._history.pins())
        except MergdError as error:
            log.error("the new configuration is not taken: %s (%s)", error, error.hint)
            return
        self._merge = self._worker.merge = self._drafting.merge = merge
        self.settings = self._worker.settings = self._drafting.settings = settings
        self._desk.hooks, self._intake.settings = list(merge.hooks), settings
        self.taken(settings)
        log.info("the configuration was read again")
        self._rescan()

    def _rescan(self) -> None:
        self._scanning.look()
        self.tell()

    # ------------------------------------------------------------------------------------------------------ one fold

    def _can_fold(self) -> bool:
        return not self._history.paused() and not self._worker.trouble and self._worker.next_ready() is not None

    def _start_fold(self) -> None:
        """Begin the next fold, if there is one to begin."""
        row = None if self._history.paused() else self._worker.next_ready()
        if row is None:
            return
        job = self._worker.begin(row, again=row.id in self._desk.again)
        if job is None:
            self._settle_soon(row.id)
            return
        log.info("folding %s", job.checkpoint.name)
        self._hands.start(job)
        self.tell()

    def _look_at_fold(self) -> None:
        """Show how far the fold is; when it has ended, commit it or record why not."""
        assert self._hands.job is not None
        self._show(self._hands.progress)
        self._desk.say(f"{self._hands.job.checkpoint.name}: {self._hands.progress}")
        if not self._hands.ended():
            if time.monotonic() - self._told_at > TELL_EVERY:
                self.tell()
            return
        job, outcome = self._hands.take()
        try:
            if isinstance(outcome, Exception):
                raise outcome
            self._note(self._worker.finish(job, outcome, self._doing))
        except Exception as error:  # noqa: BLE001 - whatever a fold ends with is recorded with its checkpoint
            self._give_up(job, error)
        self._desk.again.discard(job.checkpoint.id)
        self._worker.after_move()
        self.tell(log_too=True)
        del outcome
        trim_memory()

    def _note(self, row: Checkpoint) -> None:
        self._refused |= row.state == "refused"

    def _give_up(self, job: Job, error: Exception) -> None:
        self._worker.give_up(job, error)
        self._settle_soon(job.checkpoint.id)

    def _settle_soon(self, row: int) -> None:
        """Have a checkpoint that settles again looked at, once it may be quiet."""
        if self._history.checkpoints.get(row).state == "settling":
            self._scanning.settles_in(self.settings.quiet)

    def _abandon(self) -> None:
        """Stop a running fold; its checkpoint waits again."""
        abandoned = self._hands.abandon()
        if abandoned is not None:
            self._give_up(*abandoned)

    # --------------------------------------------------------------------------------------------------- for readers

    def tell(self, *, log_too: bool = False, live: dict[str, Any] | None = None) -> None:
        """Write the files that readers without the database look at."""
        self._told_at = time.monotonic()
        try:
            write_status(self._history, self._store, self._live() if live is None else live)
            if log_too:
                write_log(self._history, self._store)
        except OSError as error:
            log.error("status.json and log.jsonl are out of date: %s", error)

    @property
    def refused(self) -> bool:
        """Whether a checkpoint was refused in this life."""
        return self._refused or self._intake.refused > 0

    @property
    def trouble(self) -> str:
        """What keeps it from going on by itself: a full disk, a watched folder that is gone."""
        return self._worker.trouble or self._scanning.trouble

    def _live(self) -> dict[str, Any]:
        """Return what only this process knows."""
        job = self._hands.job
        return {
            "doing": f"{job.checkpoint.name}: {self._hands.progress}" if job else "",
            "trouble": self.trouble,
            "gates": list(self.settings.gates),
            "daemon": {"pid": os.getpid(), "doing": self._doing},
            "waits": {str(row): text for row, text in self._intake.waits.items()},
        }
