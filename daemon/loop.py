"""The loop: one thread takes messages and writes the history, another one folds, one checkpoint at a time.

A message only says that there is something to do; what it is, is looked up. A command that finds no daemon runs this
same loop until it has its answer.
"""

import errno
import getpass
import logging
import os
import queue
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal, Self

from ..plugins.sources.directory import Directory
from ..state.errors import Abandoned, Busy, Damaged, MergdError, Misconfigured, NotPermitted, Unavailable
from ..state.history import History
from ..state.lock import Lock
from ..state.records import Checkpoint, Verdict
from ..state.store import Store
from . import requests
from .control import Answer, Ask
from .intake import Intake
from .machine import settle_threads
from .opening import open_merge
from .progress import Progress
from .recovery import check_head, recover, wait_again
from .settings import Settings
from .status import write_log, write_status
from .worker import Job, Made, Worker

log = logging.getLogger(__name__)

TICK = 0.25  # seconds between looks at a running fold
NAP = 30.0  # seconds that the loop waits for a message at most
RETRY_AFTER = 30.0  # seconds, after a failure that is nobody's fault; doubled each time
Message = Literal["rescan", "upkeep", "reload", "look"] | Ask


@dataclass
class _Running:
    job: Job
    future: "Future[Made | Verdict]"


@dataclass
class _Waiting:
    ask: Ask
    rows: list[int]


class Loop:
    """One merge, held by its lock."""

    def __init__(
        self, settings: Settings, doing: str, show: Callable[[Progress], None] = lambda progress: None
    ) -> None:
        self.settings = settings
        self.refused: list[Checkpoint] = []  # in this life
        self.reload: Callable[[], Settings] | None = None
        self._doing, self._show = doing, show
        self._store = Store(settings.state)
        self._lock = Lock(self._store.lock)
        self._inbox: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self._progress = Progress()
        self._folding = ThreadPoolExecutor(1, "mergd-fold", settle_threads, (settings.threads,))
        self._running: _Running | None = None
        self._waiting: list[_Waiting] = []
        self._again: set[int] = set()  # checkpoints that a person wants back
        self._later: dict[int, float] = {}  # checkpoint -> when it may be tried again (monotonic seconds)
        self._rescan_at: float | None = None  # monotonic seconds
        self._source_trouble = ""
        self._stopping = False

    # ----------------------------------------------------------------------------------------------------- its life

    def __enter__(self) -> Self:
        self._lock.take(self._doing)
        try:
            self._open()
        except BaseException:
            self._lock.release()
            self._folding.shutdown()
            raise
        return self

    def _open(self) -> None:
        self._history = History(self._store.database, write=True)
        try:
            self._merge = open_merge(self.settings, self._history, self._progress)
            self._source = Directory(self.settings.watch)
            self._intake = Intake(self._merge.base, self._history, self.settings.quiet)
            self._worker = Worker(self.settings, self._merge, self._store, self._history, self._source.sight)
            recover(self._store, self._history)
            self._worker.after_move()
            self._tell(log_too=True)
        except BaseException:
            self._history.close()
            raise

    def __exit__(self, *error: object) -> None:
        self._stopping = True
        try:
            self._abandon()
            self.answer_stopping()
            self._tell(live={"daemon": None})
        finally:
            self._source.close()
            self._folding.shutdown()
            self._history.close()
            self._lock.release()

    def post(self, message: Message) -> None:
        """Leave a message, from any thread or signal handler."""
        if self._stopping and isinstance(message, Ask):
            message.error(Busy("mergd is stopping", "ask again once it runs"))
            return
        self._inbox.put(message)

    def stop(self) -> None:
        """End `run` soon, abandoning a fold; from any thread or signal handler."""
        self._stopping = True
        self._progress.abandon.set()
        self._inbox.put("look")

    def check_head(self) -> None:
        """Raise Damaged if what is published is not as it was written."""
        check_head(self._store, self._history)

    def watch(self) -> None:
        """Let the watched folder's events wake the scan."""
        self._source.watch(lambda: self.post("rescan"))

    def listen_at(self, socket: str) -> None:
        """Write where the control socket is, for those who find the lock taken."""
        self._lock.describe(self._doing, socket)

    def run(self, until: Callable[[], bool] = lambda: False) -> None:
        """Take turns until `until` says so, or until `stop`."""
        while not self._stopping and not until():
            self.turn()

    def turn(self) -> None:
        """Take the messages there are, see what is due, and keep one fold running."""
        for message in self._messages():
            self._act_on(message)
        if self._rescan_at is not None and time.monotonic() >= self._rescan_at:
            self._rescan()
        self._collect()
        self._start_fold()

    def idle(self) -> bool:
        """Whether nothing is folding, ready or about to be quiet."""
        ready = self._eligible() if not self._history.paused() and not self._worker.trouble else None
        return self._running is None and ready is None and self._rescan_at is None and self._inbox.empty()

    # ----------------------------------------------------------------------------------------------------- messages

    def _messages(self) -> list[Message]:
        """Wait for a message as long as nothing else is due; return all there are, the same wake-up once."""
        try:
            messages: list[Message] = [self._inbox.get(timeout=self._patience())]
        except queue.Empty:
            return []
        while not self._inbox.empty():
            message = self._inbox.get()
            if message not in messages:
                messages.append(message)
        return messages

    def _patience(self) -> float:
        if self._running is not None:
            return 0.0 if self._running.future.done() else TICK
        if self._eligible() is not None and not self._history.paused() and not self._worker.trouble:
            return 0.0
        return NAP if self._rescan_at is None else min(NAP, max(0.0, self._rescan_at - time.monotonic()))

    def _act_on(self, message: Message) -> None:
        if isinstance(message, Ask):
            self._carry_out(message)
        elif message == "rescan":
            self._rescan()
        elif message == "upkeep":
            self._worker.after_move()
            self._history.tidy()
            self._tell(log_too=True)
        elif message == "reload" and self.reload is not None:
            self._take_settings(self.reload())

    def _take_settings(self, settings: Settings) -> None:
        self.settings = self._worker.settings = settings
        self._intake.quiet = settings.quiet
        self._rescan()

    def _rescan(self) -> None:
        """Look at the watched folder; what settles is looked at again when it will be quiet."""
        self._rescan_at = None
        try:
            scan = self._source.scan(None)
        except Unavailable as error:
            self._source_trouble = str(error)
            log.warning("%s", error)
        else:
            self._source_trouble = ""
            wait = self._intake.see(scan.sightings)
            if wait is not None:
                self._rescan_at = time.monotonic() + max(wait, 0.05)
        self._tell()

    # ------------------------------------------------------------------------------------------------ what people ask

    def ask(self, request: requests.AnyRequest) -> Answer:
        """Carry out a request here and now, as a daemon would; returns its result or raises its error."""
        ask = Ask(request, getpass.getuser())
        self.post(ask)
        self.run(until=lambda: ask.outcome is not None)
        if isinstance(ask.outcome, MergdError):
            raise ask.outcome
        if ask.outcome is None:
            raise Abandoned
        return ask.outcome

    def _carry_out(self, ask: Ask) -> None:
        """Record a request, act, and answer; a fold is answered when its checkpoints have their verdicts."""
        request, history = ask.request, self._history
        number = history.record_request(request.verb, request.model_dump(exclude={"verb"}), ask.who)
        try:
            if isinstance(request, requests.PREEMPTING):
                self._abandon()
            result = self._act(ask)
        except MergdError as error:
            history.record_answer(number, f"error: {error}")
            ask.error(error)
        else:
            history.record_answer(number, "done" if result is not None else "queued")
            if result is not None:
                ask.result(result)
        self._tell(log_too=True)

    def _act(self, ask: Ask) -> Answer | None:
        request, history = ask.request, self._history
        match request:
            case requests.Rollback():
                result = requests.rollback(request, history, self._store, list(self._merge.hooks), ask.who)
                self._worker.after_move()
                return result
            case requests.Pause():
                return requests.pause(request, history, ask.who)
            case requests.Resume():
                return requests.resume(history)
            case requests.Fold():
                rows = requests.queue(request, history, self._intake, self._source.sight)
                self._again.update(rows if request.again else ())
                self._waiting.append(_Waiting(ask, rows))
                return None

    def _answer_folds(self) -> None:
        """Answer the asked folds whose checkpoints all have a verdict."""
        for waiting in list(self._waiting):
            rows = [self._history.checkpoints.get(row) for row in waiting.rows]
            if all(row.state not in ("ready", "folding", "settling") for row in rows):
                self._waiting.remove(waiting)
                head = self._history.head()
                folded = [
                    {"name": row.name, "state": row.state, "reasons": [str(reason) for reason in row.reasons]}
                    for row in rows
                ]
                waiting.ask.result({"head": head.number if head else None, "checkpoints": folded})

    def answer_stopping(self) -> None:
        """Tell everybody who still waits for an answer that there will be none."""
        error = Busy("mergd is stopping", "ask again once it runs")
        for waiting in self._waiting:
            waiting.ask.error(error)
        self._waiting.clear()
        while not self._inbox.empty():
            if isinstance(message := self._inbox.get(), Ask):
                message.error(error)

    # ------------------------------------------------------------------------------------------------------ one fold

    def _eligible(self) -> Checkpoint | None:
        """Return the next checkpoint to fold."""
        now = time.monotonic()
        return next((row for row in self._history.checkpoints.ready() if self._later.get(row.id, now) <= now), None)

    def _start_fold(self) -> None:
        if self._running is not None or self._stopping or self._history.paused():
            return
        row = self._eligible()
        job = self._worker.begin(row, again=row.id in self._again) if row is not None else None
        if job is None:
            if row is not None and self._history.checkpoints.get(row.id).state == "settling":
                self._rescan_at = time.monotonic() + self.settings.quiet
            return
        log.info("folding %s", job.checkpoint.name)
        future = self._folding.submit(self._worker.draft, job, self._progress)
        future.add_done_callback(lambda _: self._inbox.put("look"))
        self._running = _Running(job, future)
        self._tell()

    def _collect(self) -> None:
        """Show how far the running fold is; when it has ended, commit it or record why not."""
        running = self._running
        if running is None:
            self._answer_folds()
            return
        self._show(self._progress)
        for waiting in self._waiting:
            waiting.ask.progress(f"{running.job.checkpoint.name}: {self._progress}")
        if not running.future.done():
            return
        self._running = None
        try:
            self._note(self._worker.finish(running.job, running.future.result(), self._doing))
        except Exception as error:  # noqa: BLE001 - whatever a fold ends with is recorded with its checkpoint
            self._fail(running.job, error)
        self._again.discard(running.job.checkpoint.id)
        self._worker.after_move()
        self._tell(log_too=True)
        self._answer_folds()

    def _note(self, row: Checkpoint) -> None:
        self._later.pop(row.id, None)
        if row.state == "refused":
            self.refused.append(row)

    def _abandon(self) -> None:
        """Stop a running fold; its checkpoint waits again."""
        running, self._running = self._running, None
        if running is None:
            return
        self._progress.abandon.set()
        try:
            made = running.future.result()
            if isinstance(made, Made):
                made.draft.drop()
            raise Abandoned
        except Exception as error:  # noqa: BLE001 - it was to be abandoned anyway
            self._fail(running.job, error if isinstance(error, Damaged) else Abandoned())
        finally:
            self._progress.abandon.clear()

    def _fail(self, job: Job, error: Exception) -> None:
        """Record an attempt that ended without a verdict, by who can mend it."""
        checkpoints, row = self._history.checkpoints, job.checkpoint
        match error:
            case Damaged() | Misconfigured():
                checkpoints.end_attempt(job.attempt, f"error: {error}")
                raise error
            case Abandoned():
                checkpoints.end_attempt(job.attempt, "abandoned")
                checkpoints.make_ready(row.id)
            case Busy():
                log.info("%s", error)
                checkpoints.end_attempt(job.attempt, "changed")
                checkpoints.set_state(row.id, "settling", urgent=None)
                self._rescan_at = time.monotonic() + self.settings.quiet
            case NotPermitted():
                checkpoints.end_attempt(job.attempt, "changed")
                checkpoints.set_state(row.id, "settling", urgent=None)
                self.post("rescan")
            case OSError(errno=errno.ENOSPC):
                self._worker.trouble = f"disk full: {error}"
                checkpoints.end_attempt(job.attempt, "abandoned")
                checkpoints.make_ready(row.id)
            case _:
                log.error("the fold of %s failed", row.name, exc_info=error)
                checkpoints.end_attempt(job.attempt, f"error: {error!r}")
                tries = len(checkpoints.attempts(row.id))
                self._later[row.id] = time.monotonic() + RETRY_AFTER * 2 ** (tries - 1)
                wait_again(row, self._history)

    # --------------------------------------------------------------------------------------------------- for readers

    def _tell(self, *, log_too: bool = False, live: dict[str, Any] | None = None) -> None:
        """Write the files that readers without the database look at."""
        write_status(self._history, self._store, self.live() if live is None else live)
        if log_too:
            write_log(self._history, self._store)

    def live(self) -> dict[str, Any]:
        """Return what only this process knows."""
        doing = f"folding {self._running.job.checkpoint.name}" if self._running else ""
        return {
            "doing": doing,
            "trouble": self._worker.trouble or self._source_trouble,
            "gates": list(self.settings.gates),
            "daemon": {"pid": os.getpid(), "doing": self._doing},
            "waits": {str(row): text for row, text in self._intake.waits.items()},
        }
