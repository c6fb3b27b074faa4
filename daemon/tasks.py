"""Tasks: what people ask for that takes long and makes a version, or files of one: planned, recorded, done one after another.

It runs on the one thread that writes the history.
"""

import logging
import sqlite3
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..plugins.sources.interface import Later, Lost, Sight
from ..state.committing import Commit, Stamps
from ..state.disk_errors import meaning
from ..state.errors import Abandoned, DamagedFiles, DiskFails, DiskFull, MergdError, Unavailable, Uncertain
from ..state.history import History
from ..state.records import Move, Task
from ..state.store import Store
from .disk import LONGEST, RETRY_AFTER, Disk
from .opening import Merge
from .planning import Planning
from .plans import Plan
from .recovery import STRIKES
from .remaking import Remade, Remake
from .rests import Rests
from .settings import Settings

log = logging.getLogger(__name__)

WHO = "mergd"  # who asks for what nobody asked for


@dataclass(frozen=True)
class Rest:
    """Why a task is not tried now, and until when."""

    name: str
    error: Later
    until: float  # monotonic seconds: no clock that is set lengthens it

    @property
    def over(self) -> bool:
        """Whether it is time to try it again."""
        return time.monotonic() >= self.until

    def __str__(self) -> str:
        seconds = max(self.until - time.monotonic(), 0)
        if self.error.for_room:
            return f"{self.name}: it waits for {self.error}, and is tried again in {seconds:.0f} s"
        return f"{self.name}: it waits for the Hub, which is asked again in {seconds:.0f} s: {self.error}"


class Tasks:
    """The tasks of one merge."""

    def __init__(
        self,
        settings: Settings,
        merge: Merge,
        store: Store,
        history: History,
        commit: Commit,
        sight: Sight,
        disk: Disk,
    ) -> None:
        self.merge = merge
        self.planning = Planning(settings, merge, store, history, sight)
        self.outcomes: dict[int, dict[str, Any] | MergdError] = {}  # of tasks that ended in this life
        self._store, self._history, self._commit, self._disk = store, history, commit, disk
        self._lacking: dict[int, tuple[str, float, int]] = {}  # head without slots: why, until when (monotonic), tries
        self._later = 0.0  # monotonic seconds: before, none is tried again
        self._rests: dict[int, Rest] = {}  # tasks that wait for the Hub, or for room
        self._failed = Rests()  # the same, and how often each did

    def add(self, verb: str, arguments: Mapping[str, Any], who: str) -> tuple[Task, Plan]:
        """Record a task that can be done; raises what keeps it from being done."""
        plan = self.planning.plan(Task(0, verb, arguments, who, ""))
        about = plan.job.about
        meant = {"checkpoint": about.digest} if verb == "remove" and about else {}
        meant |= {"version": str(plan.job.number)} if verb == "replay" else {}
        return self._history.tasks.add(verb, {**arguments, **meant}, who), plan  # names may mean something else later

    def bring_back_head(self) -> str | None:
        """Have the head's slots made once more if they were dropped: the next fold starts from them.

        Returns why that cannot be done, an empty text if it will be, None if they are there.
        """
        head = self._history.head()
        if head is None or head.slots_kept:
            return None
        replays = (task for task in self._waiting() if task.verb == "replay")
        asked = next((task for task in replays if task.arguments["version"] == str(head.number)), None)
        if asked is not None:
            rest = self._rests.get(asked.id)
            return f"the slots of {head} were dropped, and {rest}" if rest else ""
        why, until, _ = self._lacking.get(head.number, ("", 0.0, 0))
        if time.monotonic() < until:
            return f"the slots of {head} were dropped, and {why}"
        try:
            self.add("replay", {"version": str(head.number)}, WHO)
        except MergdError as error:
            return f"the slots of {head} were dropped, and {error}"
        return ""

    def _waiting(self) -> list[Task]:
        return self._history.tasks.waiting()

    @property
    def mending(self) -> bool:
        """Whether a task is still to be done, now or later."""
        return bool(self._waiting())

    @property
    def stuck(self) -> MergdError | None:
        """What keeps every task from being done now: a disk that is full, or fails."""
        if time.monotonic() >= self._later:
            return None
        return Unavailable(self._disk.trouble or "a write failed", "it is written down, and done when that is mended")

    def waits(self) -> bool:
        """Whether a task is to be begun."""
        return self.stuck is None and bool(self._due())

    def _due(self) -> list[Task]:
        """Return those that wait for nothing but their turn."""
        self._rests = {task: rest for task, rest in self._rests.items() if not rest.over}
        return [task for task in self._waiting() if task.id not in self._rests]

    @property
    def resting(self) -> str:
        """What waits for the Hub or for room, and for how long; empty if nothing does."""
        return "; ".join(map(str, self._rests.values()))

    def put_off(self, task: int | None = None) -> MergdError | None:
        """Return what keeps a task, or any, from being done now."""
        rests = [rest for number, rest in self._rests.items() if task in (None, number)]
        once = "there is room" if rests and rests[0].error.for_room else "the Hub answers"
        hint = f"it is written down: the daemon does it once {once}, or else the next mergd run --once"
        return Unavailable(str(rests[0]), hint) if rests else self.stuck

    def begin(self) -> Remake | None:
        """Begin the task that was asked for first; None if there is none, or if it cannot be done any more."""
        try:
            return self._begin()
        except Exception as error:
            if isinstance(meaning(error), DiskFull | DiskFails):  # the history takes no writes: not again at once
                self._later = time.monotonic() + RETRY_AFTER
            raise

    def _begin(self) -> Remake | None:
        waiting = self._due() if self.stuck is None else []
        if not waiting:
            return None
        task = waiting[0]
        if self._history.tasks.begin(task.id) > STRIKES:
            self._end(task, Unavailable(f"{STRIKES} tries ended without an outcome", "look into the log; ask again"))
            return None
        try:
            return self.planning.plan(task).job
        except MergdError as error:
            self._end(task, error)
        except (OSError, sqlite3.Error):  # the disk's, which the loop minds
            raise
        except Exception as error:  # a rule may be anybody's, and must not end the daemon
            log.error("planning %s failed", task.verb, exc_info=error)
            self._end(task, MergdError(f"unforeseen: {type(error).__name__}: {error}", "the log says more"))
        return None

    def finish(self, job: Remake, made: Remade, who: str) -> None:
        """Make true what was made."""
        if job.check:
            made.draft.drop()
            self._history.tasks.end(job.task.id, f"done: v{job.number} came to the same bytes")
            log.info("v%d came to the same bytes", job.number)
        elif job.known is not None:
            self._commit.restore(made.draft, job.number, job.task.id)
            log.info("the files of v%d are there again", job.number)
        else:
            reports, hooks = list(made.result.reports.values()), list(self.merge.hooks)

            def write(history: History, stamps: Stamps) -> Move:
                version = replace(made.version, stamps=stamps)
                return history.commit_task(version, reports, job.task.id, who, hooks)

            self._commit.install(made.draft, job.number, write)
            log.info("%s is done: %s, %d checkpoints", job.name, made.version, made.version.totals.folded)
        more = {"left_out": said} if (said := job.arguments.get("left_out")) else {}  # by now: it may have been less
        self._failed.forget(job.task.id)
        self.outcomes[job.task.id] = {
            "version": job.number, "head": self._head_number(), "steps": len(job.route.steps), **more,
        }  # fmt: skip

    def give_up(self, job: Remake, error: Exception) -> None:
        """Record that a try ended without a version; it is tried again if that was nobody's fault."""
        match known := meaning(error):
            case Uncertain():  # it may have been committed: nothing is written before that is known
                raise known
            case Abandoned():
                self._history.tasks.forgive(job.task.id)
            case DiskFull() | DiskFails():
                self._disk.fail(known)
                self._later = time.monotonic() + RETRY_AFTER
                self._history.tasks.forgive(job.task.id)
            case Lost():
                log.warning("%s", known)
                self.planning.lose(known)  # there may be another way
                self._history.tasks.forgive(job.task.id)
            case Later():
                self._put_off(job, known)
            case MergdError():
                self._end(job.task, known)
                if isinstance(known, DamagedFiles):
                    raise known
            case _:
                log.error("%s failed", job.name, exc_info=error)
                self._end(job.task, MergdError(f"unforeseen: {type(error).__name__}: {error}", "the log says more"))

    def _put_off(self, job: Remake, error: Later) -> None:
        """Let a task rest, longer each time; for room as long as any write waits for it."""
        task, asked = job.task.id, error.until - time.time()
        seconds = RETRY_AFTER if error.for_room else self._failed.begin(task, asked)
        self._rests[task] = Rest(job.name, error, time.monotonic() + seconds)
        log.warning("%s", self._rests[task])
        self._history.tasks.forgive(task)

    def _end(self, task: Task, error: MergdError) -> None:
        log.warning("%s %s: %s", task.verb, " ".join(map(str, task.arguments.values())), error)
        self._history.tasks.end(task.id, f"error: {error}")
        self.outcomes[task.id] = error
        if task.who == WHO:  # nobody asked, so that it would be begun again at once
            number = int(task.arguments["version"])
            tries = self._lacking.get(number, ("", 0.0, 0))[2] + 1
            wait = min(LONGEST, RETRY_AFTER * 2 ** (tries - 1))
            self._lacking[number] = str(error), time.monotonic() + wait, tries

    def _head_number(self) -> int | None:
        head = self._history.head()
        return head.number if head else None
