"""The desk: what people ask is recorded, done and answered here, by the thread that writes the history."""

import logging
import sqlite3
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from ..plugins.sources.interface import Sight
from ..state.disk_errors import meaning
from ..state.errors import DiskFull, MergdError, Uncertain, Usage
from ..state.history import History
from ..state.records import Task
from ..state.store import Store
from . import deciding, dropping, requests, tagging
from .control import Answer, Ask
from .retention import Keep
from .verifying import Verifying, verify_here

if TYPE_CHECKING:  # a rollback needs no torch
    from .intake import Intake
    from .tasks import Tasks

log = logging.getLogger(__name__)


SAY_EVERY = 1.0  # seconds
T = TypeVar("T")


@dataclass
class _Waiting:
    """An ask without an answer yet: the checkpoints that it wants folded, or the task that it began."""

    ask: Ask
    rows: list[int] = field(default_factory=list)
    task: int = 0
    plan: Answer = field(default_factory=dict)


class Desk:
    """Takes the requests of one merge. A fold is answered when its checkpoints have their verdicts."""

    def __init__(
        self,
        history: History,
        store: Store,
        intake: "Intake | None",
        tasks: "Tasks | None",
        sight: Sight,
        hooks: list[str],
        keep: Keep,
    ) -> None:
        self.verifying: Verifying | None = None  # where files are read aside, if anywhere
        self.again: set[int] = set()  # checkpoints that a person wants back
        self._history, self._store, self._intake, self._tasks = history, store, intake, tasks
        self._sight, self.hooks, self.keep = sight, hooks, keep
        self._said_at = 0.0  # monotonic seconds
        self.waiting: list[_Waiting] = []

    def carry_out(self, ask: Ask) -> None:
        """Record a request, act, and answer it or let it wait for its folds. A look changes nothing, and leaves no row."""
        if isinstance(ask.request, requests.Look):
            ask.result(deciding.look(ask.request.place, self._sight))
            return
        number = self._record(ask)
        try:
            result = self._with_room(lambda: self._act(ask))
        except Exception as error:
            known = as_answer(error)
            ask.error(known)
            if isinstance(known, Uncertain):
                raise known from error
            self._history.record_answer(number, f"error: {error}")
            return
        try:
            self._history.record_answer(number, "queued" if result is None else "done")
        finally:
            if result is not None:
                ask.result(result)

    def _record(self, ask: Ask) -> int:
        """Write what is asked for, and return its row; what cannot be written is not done, and that is the answer."""
        arguments = ask.request.model_dump(exclude={"verb"})
        try:
            return self._with_room(lambda: self._history.record_request(ask.request.verb, arguments, ask.who))
        except Exception as error:
            ask.error(as_answer(error))
            raise

    def _with_room(self, act: Callable[[], T]) -> T:
        """Do something; where the history has no room for it, once more with the ballast's."""
        try:
            return act()
        except sqlite3.Error as error:
            if not isinstance(meaning(error), DiskFull) or not self._store.release_ballast():
                raise
            return act()

    def _act(self, ask: Ask) -> Answer | None:
        match ask.request:
            case requests.Rollback() as request:
                return requests.rollback(request, self._history, self._store, self.hooks, ask.who)
            case requests.Pause() as request:
                return requests.pause(request, self._history, ask.who)
            case requests.Resume():
                return requests.resume(self._history)
            case requests.Fold() as request:
                assert self._intake is not None, "folding needs the whole loop"
                rows = requests.queue(request, self._history, self._store, self._intake, self._sight)
                self.again.update(rows if request.again else ())
                self.waiting.append(_Waiting(ask, rows))
                return None
            case requests.Remove() | requests.Replay() | requests.Publish() | requests.Remerge() as request:
                return self._begin_task(ask, request)
        return self._look_after(ask)

    def _look_after(self, ask: Ask) -> Answer | None:
        match ask.request:
            case requests.Tag() as request:
                return tagging.tag(request, self._history, ask.who)
            case requests.Untag() as request:
                return tagging.untag(request, self._history, self.keep)
            case requests.Gc():
                return dropping.collect(self._history, self._store, self.keep)
        return self._decide(ask)

    def _begin_task(self, ask: Ask, request: requests.AnyTask) -> Answer | None:
        """Say what it will take, and let it be done; or only say it. Nothing is recorded of what cannot be done."""
        assert self._tasks is not None, "a task needs the whole loop"
        arguments = request.model_dump(exclude={"verb", "plan"})
        if request.plan:
            return self._tasks.planning.plan(Task(0, request.verb, arguments, ask.who, "")).describe() | {
                "planned": True
            }
        task, plan = self._tasks.add(request.verb, arguments, ask.who)
        log.info("%s: %s", request.verb, plan)
        ask.progress(str(plan))
        self.waiting.append(_Waiting(ask, task=task.id, plan=plan.describe()))
        return None

    def _decide(self, ask: Ask) -> Answer | None:
        match ask.request:
            case requests.Approve() as request:
                return deciding.approve(request, self._history, ask.who)
            case requests.Refuse() as request:
                return deciding.refuse(request, self._history, ask.who)
            case requests.Retry() as request:
                return deciding.retry(request, self._history, ask.who)
            case requests.Verify() as request:
                if self.verifying is None:
                    return verify_here(request, self._history, self._store)
                self.verifying.begin(ask, request)
                return None
        raise Usage(f"nobody does {ask.request.verb}")

    def say(self, progress: str) -> None:
        """Tell those who wait how far it is, now and then."""
        if time.monotonic() - self._said_at < SAY_EVERY:
            return
        self._said_at = time.monotonic()
        for waiting in self.waiting:
            waiting.ask.progress(progress)

    def answer(self, stuck: Callable[[Collection[int]], MergdError | None]) -> None:
        """Answer those whose task has ended, or whose folds have; and the others with what keeps their checkpoints waiting."""
        self._answer_tasks()
        self._answer_folds(stuck)

    def _answer_tasks(self) -> None:
        for waiting in [waiting for waiting in self.waiting if waiting.task]:
            outcome = (
                (self._tasks.outcomes.pop(waiting.task, None) or self._tasks.put_off(waiting.task))
                if self._tasks
                else None
            )
            if outcome is None:
                continue
            self.waiting.remove(waiting)
            if isinstance(outcome, MergdError):
                waiting.ask.error(outcome)
            else:
                waiting.ask.result(waiting.plan | outcome | {"planned": False})

    def _answer_folds(self, stuck: Callable[[Collection[int]], MergdError | None]) -> None:
        """Answer those whose checkpoints all have a verdict; and the others with what `stuck` says keeps them queued."""
        for waiting in [waiting for waiting in self.waiting if not waiting.task]:
            rows = [self._history.checkpoints.get(row) for row in waiting.rows]
            if any(row.state in ("ready", "folding", "settling") for row in rows):
                if (why := stuck(waiting.rows)) is not None:
                    self.waiting.remove(waiting)
                    waiting.ask.error(why)
                continue
            self.waiting.remove(waiting)
            head = self._history.head()
            folded = [
                {"name": r.name, "state": r.state, "reasons": [str(reason) for reason in r.reasons]} for r in rows
            ]
            waiting.ask.result({"head": head.number if head else None, "checkpoints": folded})

    def close(self, error: MergdError) -> None:
        """Tell everybody who still waits why there will be no answer."""
        for waiting in self.waiting:
            waiting.ask.error(error)
        self.waiting.clear()
        if self.verifying is not None:
            self.verifying.close(error)


def as_answer(error: Exception) -> MergdError:
    """Return an error as one that can be sent; one that nobody foresaw is logged whole."""
    known = meaning(error)
    if isinstance(known, MergdError):
        return known
    log.error("a request failed", exc_info=error)
    return MergdError(f"unforeseen: {type(error).__name__}: {error}", "the daemon's log says more")
