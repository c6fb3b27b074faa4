"""Tasks: what people ask for that repeats causes: to remove a checkpoint, to replay a version. Planned before anything is done.

It runs on the one thread that writes the history.
"""

import logging
import re
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from ..state.archive import Archive
from ..state.committing import Commit, Stamps
from ..state.disk_errors import meaning
from ..state.errors import Abandoned, DamagedFiles, DiskFails, DiskFull, MergdError, Unavailable, Uncertain, Usage
from ..state.history import History
from ..state.records import Checkpoint, Move, Sighting, Task, Version
from ..state.store import Store
from ..state.wording import size
from .disk import LONGEST, RETRY_AFTER, Disk
from .folding import removable
from .method import Method
from .naming import find_checkpoint, find_version
from .opening import Merge
from .pinning import Sources
from .publishing import slots_bytes, spilled_bytes, version_bytes
from .recovery import STRIKES
from .remaking import Remade, Remake
from .replaying import Route, Step, route_to, route_without, shares_at, unknown
from .rereading import Asked, read_out, remerged_by
from .room import lacking
from .settings import Settings

log = logging.getLogger(__name__)

WHO = "mergd"  # who asks for what nobody asked for
LOOKS_BACK = 10  # folds that the time of another one is estimated by


@dataclass(frozen=True)
class Plan:
    """What doing a task would mean."""

    job: Remake
    how: str  # "subtraction", "replay", "read-out" or "re-merge"
    nbytes: int  # that are read of sources
    seconds: float  # by the folds so far
    need: int  # bytes of the disk, while it is done
    left_out: tuple[str, ...] = ()  # checkpoints of the model whose sources are gone

    def describe(self) -> dict[str, Any]:
        """Return it as scripts see it."""
        start = self.job.start
        return {
            "how": self.how,
            "from": start.number if start else None,
            "folds": len(self.job.route.steps),
            "bytes": self.nbytes,
            "seconds": round(self.seconds, 1),
            "disk": self.need,
            "left_out": list(self.left_out),
            "words": str(self),
        }

    def __str__(self) -> str:
        cost = f"{size(self.nbytes)} to read, about {self.seconds / 60:.1f} minutes"
        gone = f"; without {', '.join(self.left_out)}, whose sources are gone" if self.left_out else ""
        return f"{self._how()}: {cost}{gone}"

    def _how(self) -> str:
        steps, start = len(self.job.route.steps), self.job.start or "the base model"
        if self.how == "re-merge":
            return f"all {len(self.job.rows)} at once, onto the base model"
        if self.how in ("subtraction", "read-out"):
            return f"by {self.how}" + (f", after {steps - 1} folds onto {start}" if steps > 1 else "")
        return f"{steps} {'fold' if steps == 1 else 'folds'} onto {start}"


class Tasks:
    """The tasks of one merge."""

    def __init__(
        self,
        settings: Settings,
        merge: Merge,
        store: Store,
        history: History,
        commit: Commit,
        sight: Callable[[Path], Sighting | None],
        disk: Disk,
    ) -> None:
        self.settings, self.merge = settings, merge
        self.outcomes: dict[int, dict[str, Any] | MergdError] = {}  # of tasks that ended in this life
        self._store, self._history, self._commit, self._disk = store, history, commit, disk
        self._sources = Sources(Archive(store), history.checkpoints, sight)
        self._lacking: dict[int, tuple[str, float, int]] = {}  # head without slots: why, until when (monotonic), tries
        self._later = 0.0  # monotonic seconds: before, none is tried again

    # ---------------------------------------------------------------------------------------------------------- plans

    def plan(self, task: Task) -> Plan:
        """Return what a task would mean now. Raises Usage or Unavailable, saying why it cannot be done."""
        if task.verb == "remove":
            return self._removal(task, str(task.arguments["checkpoint"]), bool(task.arguments["exact"]))
        if task.verb in ("publish", "remerge"):
            return self._rereading(task)
        return self._replay(task, str(task.arguments["version"]), bool(task.arguments.get("check")))

    def _removal(self, task: Task, text: str, exact: bool) -> Plan:
        head = self._history.head()
        for version in self._history.lineage(head.number if head else None):
            if not version.is_known:
                raise unknown(version)
        row = self._in_model(text, head.number) if head else None
        if head is None or row is None:
            raise Usage(f"{find_checkpoint(self._history, text).name} is not in the model", "see: mergd list")
        routes = (
            [self._by_subtraction(row, head)]
            if removable(self.merge.base, self.merge.method_at(head)) and not exact
            else []
        )
        history = self._history
        routes.append(route_without(row.id, head, history.with_files(), history.recipe, self._version, self._alike))
        route, sightings = self._possible(routes, row)
        subtracted = any(step.act == "remove" for step in route.steps)
        how = "subtraction" if subtracted else "replay"
        shares = [step.share for step in route.steps]
        folds = {"onto": route.start, "folds": list(route.checkpoints), "shares": shares}
        arguments = {"how": how} | ({"share": shares[-1]} if subtracted else folds)
        job = self._job(task, self._history.next_number(), route, sightings)
        return self._costs(replace(job, parent=head, about=row, arguments=arguments, method=head.method), how)

    def _alike(self, one: Version, other: Version) -> bool:
        """Whether two versions keep the same statistics of the same task vectors."""
        if one.method == other.method:
            return True
        try:
            methods = [self.merge.method_at(version) for version in (one, other)]
        except MergdError:  # by a rule that is not installed any more
            return False
        return methods[0].keeps_as(methods[1], self.merge.base.weights)

    def _rereading(self, task: Task) -> Plan:
        """Plan a read-out of what is kept, or a re-merge. Raises Usage or Unavailable."""
        head = self._history.head()
        if head is None:
            raise Usage("there is no version yet", "fold a checkpoint first")
        asked = Asked.of(task.arguments)
        return self._reading(task, head, asked) if task.verb == "publish" else self._merging(task, head, asked)

    def _reading(self, task: Task, head: Version, asked: Asked) -> Plan:
        method = read_out(self.merge.method_at(head), asked, self.merge.base.weights)
        described = self._described(method)
        if described == head.method and method.name == head.rule:
            raise Usage(f"{head} is read out so already", "see: mergd status")
        kept = route_to(head.number, self._version)
        route, sightings = self._possible([Route(kept.start, (*kept.steps, Step("keep", method=described)))], None)
        job = self._job(task, self._history.next_number(), route, sightings)
        return self._costs(replace(job, parent=head, cause="read-out", method=described), "read-out")

    def _merging(self, task: Task, head: Version, asked: Asked) -> Plan:
        method, by = remerged_by(self.merge.method_at(head), asked)
        rows = [self._history.checkpoints.get(row) for row in self._history.recipe(head.number)]
        sightings = {row.id: found for row in rows if (found := self._sources.find(row)) is not None}
        if not sightings:
            raise Unavailable("no checkpoint in the model is still at its source", "nothing was changed")
        described, gone = self._described(method), tuple(row.name for row in rows if row.id not in sightings)
        shares = shares_at(head.number, self._version)
        merged = tuple((row, shares[row]) for row in sightings)
        route = Route(None, (Step("merge", method=described, merged=merged),))
        said = {"folds": [row for row, _ in merged], "shares": [share for _, share in merged], "left_out": list(gone)}
        job = self._job(task, self._history.next_number(), route, sightings)
        job = replace(job, parent=head, cause="re-merge", arguments=by | said, method=described)
        return replace(self._costs(job, "re-merge"), left_out=gone)

    def _described(self, method: Method) -> dict[str, Any]:
        """Return a method as a version has it: nothing where it is as init pinned it."""
        described = method.describe()
        return {} if described == self.merge.method.describe() else described

    def _in_model(self, text: str, head: int) -> Checkpoint | None:
        """Return the row that is in the model of a checkpoint, by its whole digest or as people call it.

        What lies at its place by now may be another one, which is not meant.
        """
        checkpoints, inside = self._history.checkpoints, set(self._history.recipe(head))
        if re.fullmatch(r"[0-9a-f]{64}", text):
            return self._history.checkpoint_in_line(text, head)
        named = find_checkpoint(self._history, text)
        rows = [named, *reversed(checkpoints.placed(named.place))]
        same = self._history.checkpoint_in_line(named.digest or "", head) if named.state == "folded" else None
        return next((row for row in rows if row.id in inside), same)

    def _by_subtraction(self, row: Checkpoint, head: Version) -> Route:
        if self._history.recipe(head.number) == (row.id,):  # nothing is left: not even what rounding leaves
            return Route(None)
        route = route_to(head.number, self._version)
        share = shares_at(head.number, self._version)[row.id]
        return Route(route.start, (*route.steps, Step("remove", row.id, None, share, head.method)))

    def _replay(self, task: Task, text: str, check: bool) -> Plan:
        version = find_version(self._history, text)
        if version.kept and version.slots_kept and not check:
            raise Usage(f"the files of {version} are there", f"to go back to it: mergd rollback {version}")
        route, sightings = self._possible([route_to(version.number, self._version, anew=check)], None)
        job = self._job(task, version.number, route, sightings)
        row = version.checkpoint or version.removed
        about = self._history.checkpoints.get(row) if row else None
        return self._costs(replace(job, known=version, about=about, check=check), "replay")

    def _version(self, number: int) -> Version:
        version = self._history.version(number)
        assert version is not None, "a parent is a version: a foreign key"
        return version

    def _possible(self, routes: Iterable[Route], removed: Checkpoint | None) -> tuple[Route, dict[int, Sighting]]:
        """Return the first route all of whose sources are there, and where they lie."""
        gone: dict[int, Checkpoint] = {}
        for route in routes:
            rows = [self._history.checkpoints.get(row) for row in dict.fromkeys(route.checkpoints)]
            found = {row.id: self._sources.find(row) for row in rows}
            missing = [row for row in rows if found[row.id] is None]
            if not missing:
                return route, {row: sighting for row, sighting in found.items() if sighting is not None}
            gone |= {row.id: row for row in missing}
        what = f"{removed.name} cannot be taken out" if removed else "it cannot be replayed"
        names = ", ".join(f"{row.name} ({row.place})" for row in gone.values())
        raise Unavailable(f"{what}: the source is gone of {names}", "nothing was changed; bring it back, and ask again")

    def _job(self, task: Task, number: int, route: Route, sightings: Mapping[int, Sighting]) -> Remake:
        rows = {row: self._history.checkpoints.get(row) for row in route.checkpoints}
        return Remake(task, number, route, self._version(route.start) if route.start else None, rows, sightings)

    def _costs(self, job: Remake, how: str) -> Plan:
        """Return the plan with what it costs. Raises Unavailable where the disk is too small."""
        base, method = self.merge.base, self.merge.method_of((job.known or job).method)
        version = version_bytes(base, method, self.settings.out_dtype, self.settings.copy_code)
        need = (
            version + spilled_bytes(base, method) + slots_bytes(base, method) * min(max(len(job.route.steps) - 1, 0), 2)
        )
        free = self._store.free()
        if free < need:
            raise Unavailable(f"it needs {need:,} bytes of the disk, {free:,} are free", "nothing was changed")
        kept = [version.number for version in self._history.with_files()]
        if over := lacking(self._store, kept, None, need, self.settings.disk):
            raise Unavailable(over, "nothing was changed")
        folds = [sum(v.seconds.values()) for v in self._history.versions(LOOKS_BACK) if v.seconds]
        seconds = median(folds) * max(len(job.route.steps), 1) if folds else 0.0
        nbytes = sum(stamp.size for sighting in job.sightings.values() for stamp in sighting.stamps)
        return Plan(job, how, nbytes, seconds, need)

    # --------------------------------------------------------------------------------------------------------- doing

    def add(self, verb: str, arguments: Mapping[str, Any], who: str) -> tuple[Task, Plan]:
        """Record a task that can be done; raises what keeps it from being done."""
        plan = self.plan(Task(0, verb, arguments, who, ""))
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
        if any(task.verb == "replay" and task.arguments["version"] == str(head.number) for task in self._waiting()):
            return ""
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
        return self.stuck is None and bool(self._history.tasks.waiting())

    def begin(self) -> Remake | None:
        """Begin the task that was asked for first; None if there is none, or if it cannot be done any more."""
        try:
            return self._begin()
        except Exception as error:
            if isinstance(meaning(error), DiskFull | DiskFails):  # the history takes no writes: not again at once
                self._later = time.monotonic() + RETRY_AFTER
            raise

    def _begin(self) -> Remake | None:
        waiting = self._history.tasks.waiting() if self.stuck is None else []
        if not waiting:
            return None
        task = waiting[0]
        if self._history.tasks.begin(task.id) > STRIKES:
            self._end(task, Unavailable(f"{STRIKES} tries ended without an outcome", "look into the log; ask again"))
            return None
        try:
            return self.plan(task).job
        except MergdError as error:
            self._end(task, error)
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
        self.outcomes[job.task.id] = {"version": job.number, "head": self._head_number(), "steps": len(job.route.steps)}

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
            case MergdError():
                self._end(job.task, known)
                if isinstance(known, DamagedFiles):
                    raise known
            case _:
                log.error("%s failed", job.name, exc_info=error)
                self._end(job.task, MergdError(f"unforeseen: {type(error).__name__}: {error}", "the log says more"))

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
