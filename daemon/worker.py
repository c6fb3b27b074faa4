"""The worker takes a ready checkpoint to its version: it begins the attempt, and commits or records what drafting made.

It runs on the one thread that writes the history.
"""

import logging
import time
from dataclasses import replace
from datetime import timedelta

from ..plugins.formats.interface import Candidate
from ..plugins.sources.interface import Room, Sight
from ..state.archive import Archive
from ..state.clock import seconds_since
from ..state.committing import Commit, Stamps
from ..state.disk_errors import meaning
from ..state.errors import (
    Abandoned,
    Busy,
    Damaged,
    DiskFails,
    DiskFull,
    Misconfigured,
    NotPermitted,
    Unavailable,
    Uncertain,
)
from ..state.history import History
from ..state.prepared import forget
from ..state.records import ADMITTED, Checkpoint, Move, Version
from ..state.store import BALLAST, Store, disk_bytes
from . import replacing
from .admission import Admission
from .ancestry import Lines
from .disk import RETRY_AFTER, Disk
from .drafting import Made, Outcome
from .dropping import decide, drop
from .evaluating import measured_before
from .front_matter import licence_in
from .judging import Job, Known, Past, Turned, contribution_of, known_content
from .naming import ELSEWHERE
from .opening import Merge
from .pinning import still_pinned
from .preparing import Wanted, folder_of
from .publishing import spilled_bytes, version_bytes
from .recovery import STRIKES, check_head, wait_again
from .replacing import Start
from .rests import Rests
from .retention import Keep
from .room import lacking, spare
from .settings import Settings
from .sidecar import counted
from .status import owed_news
from .telling import tell_hooks

log = logging.getLogger(__name__)

LOOKS_BACK = 1000  # folds that a newcomer is compared with
DAY = timedelta(days=1)


class Worker:
    """One merge's worker."""

    def __init__(
        self, settings: Settings, merge: Merge, store: Store, history: History, commit: Commit, sight: Sight
    ) -> None:
        self.settings = settings
        self.held_up = ""  # why nothing can be folded onto the head, if so
        self.merge, self._store, self._history, self._commit, self._sight = merge, store, history, commit, sight
        self._needs: dict[str, int] = {}  # bytes of the disk, by method
        self.disk = Disk(store, self._need(), self._lacks)
        self._archive, self._lines = Archive(store), Lines(history)
        self._rests = Rests()  # of checkpoints

    @property
    def trouble(self) -> str:
        """Return what keeps folding from going on by itself, such as a full disk; empty if nothing does."""
        return self.disk.trouble or self.held_up

    def _need(self) -> int:
        """Return the bytes that the next version takes while it is made, by the head's method."""
        head = self._history.head()
        key = repr(head.method if head else {})
        if key not in self._needs:
            base, method, settings = self.merge.base, self.merge.method_at(head), self.settings
            version = version_bytes(base, method, settings.out_dtype, settings.copy_code)
            self._needs[key] = version + spilled_bytes(base, method)
        return self._needs[key]

    # -------------------------------------------------------------------------------------------------------- begin

    def next_ready(self) -> Checkpoint | None:
        """Return the checkpoint whose turn it is."""
        rows = self._history.checkpoints.ready(len(self._rests) + 1)  # one more than may have to wait
        return next((row for row in rows if not self._rests.left(row.id)), None)

    def begin(self, row: Checkpoint, *, again: bool = False) -> Job | None:
        """Read a ready checkpoint's headers again, write the attempt and return the job.

        None if the disk is too full, or if it is not ready after all: then it settles again. Raises DamagedFiles if the
        head is not as it was written: nothing is folded onto it.
        """
        check_head(self._store, self._history)
        self.disk.need = self._need()
        if not self.disk.suffices():
            self.retain()
            return None
        checkpoints = self._history.checkpoints
        candidate = self._candidate(row)
        if candidate is None:
            checkpoints.set_state(row.id, "settling", urgent=row.urgent if self._is_elsewhere(row) else None)
            return None
        row = replace(row, licence=row.licence or licence_in(candidate.here))
        job = job_for(row, candidate, self._history, self.settings, again=again)
        line = self._lines.to(job.start.parent.number if job.start.parent else None)
        nbytes = sum(max(stamp.size, 0) for stamp in candidate.stamps)
        attempt = checkpoints.begin_attempt(row.id, nbytes=nbytes, licence=row.licence)
        return replace(job, line=line, attempt=attempt, waited=seconds_since(row.since))

    def _candidate(self, row: Checkpoint) -> Candidate | None:
        try:
            sighting = self._sight(row.place)
            if sighting is None or not sighting.lies_here or sighting.fingerprint != row.fingerprint:
                return None
            method = self.merge.method_at(self._history.head())
            candidate, verdict = Admission(self.merge.base, self.settings, method).examine(sighting)
        except (NotPermitted, Unavailable, OSError):
            return None
        return candidate if verdict == ADMITTED else None

    def _is_elsewhere(self, row: Checkpoint) -> bool:
        """Whether it is only to be brought here once more, as after a restart: whoever asked for it still does."""
        if ELSEWHERE not in row.place:
            return False
        sighting = self._sight(row.place)
        return sighting is None or not sighting.lies_here

    def _lacks(self) -> str:
        """Return why the settings have no room for another version, if so."""
        head = self._history.head()
        kept = [version.number for version in self._history.with_files()]
        return lacking(self._store, kept, head.number if head else None, self.disk.need, self.settings.disk)

    def room(self) -> Room:
        """Return the room on the disk, and within the settings' budget, for what comes from elsewhere."""
        self.disk.need, budget, head = self._need(), self.settings.disk, self._history.head()
        room = self.disk.room()
        if budget:
            kept, number = [version.number for version in self._history.with_files()], head.number if head else None
            left = spare(self._store, kept, number, self.disk.need, budget)
            room = replace(room, now=min(room.now, left), most=min(room.most, budget - self.disk.need - BALLAST))
        return room

    def wanted(self, head: Version) -> Wanted:
        """Return what is to be prepared for folds onto the head, and the room for it that the next version does not need."""
        self.disk.need, settings, folder = self._need(), self.settings, folder_of(head, self._store)
        room = int(settings.prepared) if settings.prepare else 0
        if settings.disk:
            kept, there = [version.number for version in self._history.with_files()], disk_bytes(folder.glob("*"))
            room = min(room, there + spare(self._store, kept, head.number, self.disk.need, settings.disk))
        return Wanted(head, self.merge.base, self.merge.method_at(head), settings, room, self.disk.spare)

    # ------------------------------------------------------------------------------------------------------- finish

    def finish(self, job: Job, outcome: Outcome, who: str) -> Checkpoint:
        """Commit what was made, or record why nothing was; returns the checkpoint as it is now.

        Raises Busy if the head moved meanwhile: then nothing changed.
        """
        self._rests.forget(job.checkpoint.id)
        if isinstance(outcome, Turned):
            return self._record_verdict(job, outcome)
        if isinstance(outcome, Known):
            return self._record_duplicate(job, outcome.digest)
        return self._make_true(job, outcome, who)

    def _record_verdict(self, job: Job, turned: Turned) -> Checkpoint:
        verdict, more = turned.verdict, {"digest": turned.digest} if turned.digest else {}
        assert verdict.decision != "admitted"
        self._history.checkpoints.end_attempt(job.attempt, verdict.decision)
        name, about = job.checkpoint.name, {"checkpoint": job.checkpoint.name, "reason": verdict.codes}
        log.warning("%s is %s: %s", name, verdict.decision, "; ".join(map(str, verdict.reasons)), extra=about)
        return self._history.checkpoints.set_state(
            job.checkpoint.id, verdict.decision, *verdict.reasons, urgent=None, **more
        )

    def _record_duplicate(self, job: Job, digest: str) -> Checkpoint:
        """Record that this content counts already, under its first name."""
        known = self._history.checkpoints.holding(digest) or job.checkpoint
        reason = known_content(job.checkpoint, known)
        same = None if known.id == job.checkpoint.id else known.id
        log.info("%s holds the content of %s: nothing to fold", job.checkpoint.name, known.name)
        self._history.checkpoints.end_attempt(job.attempt, "duplicate")
        return self._history.checkpoints.set_state(
            job.checkpoint.id, "folded", reason, digest=digest, urgent=None, duplicate_of=same
        )

    def _make_true(self, job: Job, made: Made, who: str) -> Checkpoint:
        """Rename the draft in, and make it true in one transaction; `after_move` lets the link follow."""
        reports, digest = list(made.result.reports.values()), made.result.digest
        brought = contribution_of(job, made.result)
        replaced = job.start.replaced.number if job.start.replaced else None
        number, hooks, began = made.version.number, list(self.merge.hooks), time.monotonic()

        def write(history: History, stamps: Stamps) -> Move:
            steps = dict(made.version.seconds)
            steps["sync"] = round(steps.get("sync", 0.0) + time.monotonic() - began, 3)
            version = replace(made.version, stamps=stamps, seconds={"wait": round(job.waited, 3), **steps})
            return history.commit_fold(version, digest, reports, job.attempt, who, hooks, replaced, brought)

        self._commit.install(made.draft, number, write, source=digest)
        self.disk.wrote()
        version = made.version
        name, folded, scale = job.checkpoint.name, version.totals.folded, version.scale
        about = {"checkpoint": name, "version": number}
        log.info("%s is folded: %s, %d checkpoints, scale %.4g", name, version, folded, scale, extra=about)
        return self._history.checkpoints.get(job.checkpoint.id)

    def give_up(self, job: Job, error: Exception) -> None:
        """Record an attempt that ended without a verdict, by who can mend it. Raises what stops the daemon."""
        checkpoints, row = self._history.checkpoints, job.checkpoint
        match known := meaning(error):
            case Uncertain():  # the attempt may have been committed: nothing is written before that is known
                raise known
            case Damaged() | Misconfigured():  # no fault of the checkpoint's
                self._put_back(job)
                raise known
            case DiskFull() | DiskFails():
                self.disk.fail(known)
                self._put_back(job)
            case Abandoned():
                self._put_back(job)
            case Busy() | NotPermitted():
                log.info("%s", error)
                checkpoints.end_attempt(job.attempt, "changed")
                checkpoints.set_state(row.id, "settling", urgent=None)
                self._rests.forget(row.id)
            case Unavailable():
                log.warning("%s", error)
                self._rests.begin(row.id)
                self._put_back(job)
            case _:
                log.error("the fold of %s failed", row.name, exc_info=error, extra={"checkpoint": row.name})
                checkpoints.end_attempt(job.attempt, f"error: {error!r}")
                tries = len(checkpoints.attempts(row.id))
                self._rests.begin(row.id, RETRY_AFTER * 2 ** (tries - 1))
                asked = row.urgent is not None  # then somebody waits for an answer
                wait_again(row, self._history, strikes=1 if asked else STRIKES)

    def _put_back(self, job: Job) -> None:
        """Let a checkpoint wait for its turn again: the end of the attempt says nothing about it."""
        self._history.checkpoints.end_attempt(job.attempt, "abandoned")
        self._history.checkpoints.make_ready(job.checkpoint.id)

    # -------------------------------------------------------------------------------------------------- afterwards

    def after_move(self) -> None:
        """Do what follows a move of the head: link, tell the hooks, and let go of files that nothing needs."""
        self._link()
        tell_hooks(self.merge.hooks, owed_news(self._history, self._store, self.merge.hooks), self._history.told)
        self.retain()

    def _link(self) -> None:
        """Let the link follow the head. The head has moved by then: what fails here is tried again, never undone."""
        try:
            self._commit.link()
        except OSError as error:
            log.error("models/current does not lead to the head yet: %s", error)

    def retain(self) -> None:
        """Drop the files of versions that retention lets go; first the promise, then the bytes."""
        drop(decide(self._history, Keep.of(self.settings)), self._commit)
        self._commit.sweep_rest()
        head = self._history.head()
        forget(self._store.prepared, but=folder_of(head, self._store) if head and self.settings.prepare else None)
        self._archive.keep(still_pinned(self._archive.entries(), self.settings.archive.full))


def job_for(row: Checkpoint, candidate: Candidate, history: History, settings: Settings, *, again: bool = False) -> Job:
    """Return the job that a fold of a checkpoint would be now, without an attempt."""
    start = start_of(row, history)
    line = start.parent.number if start.parent else None
    here = frozenset[str]() if row.urgent else history.checkpoints.digests_from(row.place)
    known = history.digests_in_line(line)
    if start.replaced is not None:  # what it replaces is no longer in the model: only what stays counts already
        here &= history.digests_in_line(start.replaced.number)
    elif not again:
        known |= history.checkpoints.folded_digests()
    brought, last_day = history.contributions.in_line(line, LOOKS_BACK), history.contributions.count_since(DAY)
    past = Past(brought, last_day, history.decided.all(), measured_before(settings, history, start.head))
    counts = counted(candidate.here, settings)
    return Job(0, row, candidate, history.next_number(), start, here, known, past, counts.share, counts.doubt)


def start_of(row: Checkpoint, history: History) -> Start:
    """Return the version that a fold starts from: the head, or its parent if the row replaces what the head folded."""
    head = history.head()
    if row.replaces is None or head is None:
        return Start(head)
    inside = set(history.recipe(head.number))
    return replacing.plan(row, history.lineage(head.number), history.checkpoints.get, inside.__contains__)
