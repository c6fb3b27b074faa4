"""Working: which work is done next, a person's task or a fold, and what becomes of it; on the thread that writes the history.

One piece of work runs at a time, on the folding thread. It is begun here, looked at, and made true or given up.
"""

import logging
from collections.abc import Callable, Container
from copy import copy
from functools import partial
from typing import TYPE_CHECKING

from ..plugins.sources.interface import Sight
from ..state.committing import Commit
from ..state.errors import DamagedFiles
from ..state.history import History
from ..state.records import Version
from ..state.store import Store
from .drafting import Drafting, Made
from .hands import Hands
from .judging import Given, Job, Known, Turned
from .opening import Merge
from .progress import Progress
from .remaking import Remade, Remake, Remaking
from .settings import Settings
from .tasks import Tasks
from .worker import Worker

if TYPE_CHECKING:  # the Hub's client takes a second to import
    from ..plugins.sources.hub.line import Line

log = logging.getLogger(__name__)


class Working:
    """The work of one merge."""

    def __init__(
        self,
        settings: Settings,
        merge: Merge,
        store: Store,
        history: History,
        commit: Commit,
        sight: Sight,
        doing: str,
    ) -> None:
        self.worker = Worker(settings, merge, store, history, commit, sight)
        self.tasks = Tasks(settings, merge, store, history, commit, sight, self.worker.disk)
        self.refused = False  # whether a checkpoint was, in this life
        self.given = Given()  # what was decided in this life, besides that something is folded
        self.wake: Callable[[], None] = lambda: None  # called from the folding thread when work has ended
        self.contain: Callable[[Version, DamagedFiles], None]  # what is to follow from damage to a version's files
        self.settle: Callable[[int], None]  # called with a checkpoint that was not ready after all
        self._history, self._doing = history, doing
        self._drafting = Drafting(settings, merge, store, commit)
        self._remaking = Remaking(settings, merge, store, commit)
        self._remaking.fetching.wipe()
        self._hands: Hands[Job | Remake] = Hands(lambda: self.wake())
        self._ended: list[tuple[Job | Remake, Exception]] = []  # work that came to nothing, of which rows are to tell

    def share(self, line: "Line | None") -> None:
        """Fetch over the line of a watched namespace, if there is one."""
        self._remaking.fetching.line = line

    def take_settings(self, settings: Settings, merge: Merge) -> None:
        """Go on with other settings; what is being done keeps the old ones."""
        self.tasks.merge = merge
        for part in (self.worker, self.tasks.planning, self._drafting):
            part.merge, part.settings = merge, settings
        self._remaking.take_settings(settings, merge)

    def close(self) -> None:
        """End the thread."""
        self._hands.close()
        self._remaking.fetching.wipe()

    # ------------------------------------------------------------------------------------------------------- looking

    @property
    def free(self) -> bool:
        """Whether something could be begun."""
        return self._hands.free

    @property
    def busy(self) -> bool:
        """Whether something is being done, or was done and is not looked at yet."""
        return self._hands.job is not None

    @property
    def ended(self) -> bool:
        """Whether something waits to be looked at."""
        return self._hands.ended()

    @property
    def mending(self) -> bool:
        """Whether a person's task is being done, or will be."""
        return self.tasks.mending or self.on_a_task

    @property
    def on_a_task(self) -> bool:
        """Whether a person's task is being done."""
        return isinstance(self._hands.job, Remake)

    @property
    def progress(self) -> Progress:
        """How far the work is."""
        return self._hands.progress

    def __str__(self) -> str:
        return f"{self._hands.job.name}: {self._hands.progress}" if self._hands.job else self.tasks.resting

    @property
    def running(self) -> Progress | None:
        """What the folding thread is at, also where it was told to stop and has not yet; None if nothing."""
        return self._hands.progress if not (self.free or self.ended) else None

    @property
    def brief(self) -> str:
        """What is being done, in a few words."""
        return self._hands.progress.of(self._hands.job.name) if self._hands.job else ""

    def waits(self) -> bool:
        """Whether there is something to begin."""
        return self.tasks.waits() or self._may_fold()

    def _may_fold(self) -> bool:
        return not self._history.paused() and not self.worker.trouble and self.worker.next_ready() is not None

    # ----------------------------------------------------------------------------------------------------- beginning

    def begin(self, again: Container[int]) -> bool:
        """Begin the task that was asked for first, or else the next fold, if there is one; returns whether one was begun.

        again: the checkpoints that a person wants back.
        """
        task = self.tasks.begin()
        if task is not None:
            log.info("%s", task.name)
            self._remaking.fetching.keep_free = self.worker.room().keep_free
            self._hands.start(task, partial(self._remaking.remake, task))
        elif not self.tasks.waits():
            self._begin_fold(again)
        return self.busy

    def _begin_fold(self, again: Container[int]) -> None:
        row = None if self._history.paused() else self.worker.next_ready()
        if row is None:
            self.worker.held_up = ""
        if row is None or not self._head_has_slots():
            return
        try:
            job = self.worker.begin(row, again=row.id in again)
        except DamagedFiles as error:
            self._contain(error)
            return
        if job is None:
            self.settle(row.id)
            return
        log.info("folding %s", job.name, extra={"checkpoint": job.checkpoint.name})
        drafting = copy(self._drafting)  # a reload meanwhile is for the next one
        self._hands.start(job, partial(drafting.draft, job))

    def _head_has_slots(self) -> bool:
        """Whether something can be folded onto the head; slots that were dropped are made once more, if they can be."""
        lacking = self.tasks.bring_back_head()
        self.worker.held_up = f"paused: {lacking}" if lacking else ""
        return lacking is None

    # -------------------------------------------------------------------------------------------------------- ending

    def take(self) -> Job | Remake:
        """Make true what has ended, or record why it came to nothing; returns what it was."""
        self._record_measured()
        job, outcome = self._hands.take()
        try:
            self._finish(job, outcome)
        except Exception as error:  # noqa: BLE001 - whatever work ends with is recorded with what it was about
            self._give_up(job, error)
        return job

    def _finish(self, job: Job | Remake, outcome: object) -> None:
        match job, outcome:
            case _, Exception() as error:
                raise error
            case Remake(), Remade() as made:
                self.tasks.finish(job, made, job.task.who)
            case Job(), (Made() | Known() | Turned()) as drafted:
                row = self.worker.finish(job, drafted, self._doing)
                self.refused |= row.state == "refused"
                self.given.update((row.state, reason.code) for reason in row.reasons if row.state != "folded")

    def abandon(self) -> None:
        """Stop what is being done; what it is about waits again."""
        abandoned = self._hands.abandon()
        if abandoned is not None:
            self._give_up(*abandoned)

    def _give_up(self, job: Job | Remake, error: Exception) -> None:
        self._ended.append((job, error))
        self.record_ends()

    def _record_measured(self) -> None:
        """Record what gates measured, whatever becomes of the draft that it was measured for: that waits for it."""
        fresh, evaluations = self._drafting.gating.measured, self._history.evaluations
        while fresh:
            evaluations.add(fresh[0])
            fresh.popleft()
            evaluations.prune()

    def record_ends(self) -> None:
        """Record how work ended, and what was measured for it; what the history has no room for stays here until it has."""
        self._record_measured()
        while self._ended:
            job, error = self._ended[0]
            try:
                if isinstance(job, Remake):
                    self.tasks.give_up(job, error)
                else:
                    self.worker.give_up(job, error)
            except DamagedFiles as damage:
                self._contain(damage)
            self._ended.pop(0)
            if isinstance(job, Job):
                self.settle(job.checkpoint.id)

    def _contain(self, damage: DamagedFiles) -> None:
        """Have damage contained in the version whose files it is in: `versions/000004/...`, `models/000004/...`."""
        version = self._history.version(int(damage.files[0].split("/")[1]))
        assert version is not None, damage
        self.contain(version, damage)
