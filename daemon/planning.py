"""Planning: what doing a task would mean now: the route that it takes, the sources that it needs, and what it costs.

Nothing is changed here. A plan that cannot be carried out is an error that says why.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from statistics import median
from typing import Any

from ..plugins.sources.interface import Lost, Sight
from ..state.archive import Archive
from ..state.errors import Misconfigured, NotPermitted, Unavailable, Usage
from ..state.history import History
from ..state.records import Checkpoint, Sighting, Task, Version
from ..state.store import Store
from .ancestry import line_of
from .base import float32_bytes
from .blocks import machine_of
from .folding import removable
from .machine import allow_open_files
from .method import Method
from .naming import find_checkpoint, find_version
from .opening import Merge
from .pinning import Sources
from .plans import Fetch, Plan
from .publishing import slots_bytes, spilled_bytes, version_bytes
from .remaking import Remake
from .replaying import Route, Step, route_to, route_without, shares_at, unknown
from .rereading import Asked, read_out, remerged_by
from .room import lacking
from .settings import Settings
from .slots import plan_slots

LOOKS_BACK = 10  # folds that the time of another one is estimated by
TO_KEEP = "archive.adapters and archive.full would have kept a copy"


class Planning:
    """The plans of one merge."""

    def __init__(
        self,
        settings: Settings,
        merge: Merge,
        store: Store,
        history: History,
        sight: Sight,
    ) -> None:
        self.settings, self.merge = settings, merge
        self._store, self._history = store, history
        self._sources = Sources(Archive(store), history.checkpoints, sight)

    def plan(self, task: Task) -> Plan:
        """Return what a task would mean now. Raises Usage, Unavailable or NotPermitted, saying why it cannot be done."""
        if not task.id:  # somebody asks: perhaps what was lost is back
            self._sources.lost.clear()
        if task.verb == "remove":
            return self._removal(task, str(task.arguments["checkpoint"]), bool(task.arguments["exact"]))
        if task.verb in ("publish", "remerge"):
            return self._rereading(task)
        return self._replay(task, str(task.arguments["version"]), bool(task.arguments.get("check")))

    def lose(self, lost: Lost) -> None:
        """Plan without what the Hub does not give any more."""
        self._sources.lost[lost.sighting.place, lost.sighting.revision] = lost.why

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
        except Misconfigured:  # by a rule that is not installed any more
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
        machine_of(self.settings, self.merge.base, method)  # before anything is written
        described = self._described(method)
        if described == head.method and method.name == head.rule:
            raise Usage(f"{head} is read out so already", "see: mergd status")
        kept = route_to(head.number, self._version)
        route, sightings = self._possible([Route(kept.start, (*kept.steps, Step("keep", method=described)))], None)
        job = self._job(task, self._history.next_number(), route, sightings)
        return self._costs(replace(job, parent=head, cause="read-out", method=described), "read-out")

    def _merging(self, task: Task, head: Version, asked: Asked) -> Plan:
        method, by = remerged_by(self.merge.method_at(head), asked)
        machine_of(self.settings, self.merge.base, method)
        rows = [self._history.checkpoints.get(row) for row in self._history.recipe(head.number)]
        sightings = {row.id: found for row in rows if (found := self._found(row)) is not None}
        if not rows:
            raise Usage(f"there is no checkpoint in the model of {head}", "see: mergd list")
        self._check_lost("it cannot be merged anew", [row for row in rows if row.id not in sightings])
        if not sightings:
            raise Unavailable("no checkpoint in the model is still at its source", "nothing was changed")
        described, gone = self._described(method), tuple(row.name for row in rows if row.id not in sightings)
        shares = shares_at(head.number, self._version)
        merged = tuple((row, shares[row]) for row in sightings)
        route = Route(None, (Step("merge", method=described, merged=merged),))
        said = {"folds": [row for row, _ in merged], "shares": [share for _, share in merged], "left_out": list(gone)}
        job = self._job(task, self._history.next_number(), route, sightings)
        job = replace(job, parent=head, cause="re-merge", arguments=by | said, method=described)
        return replace(self._costs(job, "re-merge"), left_out=gone, goes_on_by=method.name if by else "")

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
        anew = check or version.read_at_once  # its slots do not say what was published
        route, sightings = self._possible([route_to(version.number, self._version, anew)], None)
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
            found = {row.id: self._found(row) for row in rows}
            missing = [row for row in rows if found[row.id] is None]
            if not missing:
                return route, {row: sighting for row, sighting in found.items() if sighting is not None}
            gone |= {row.id: row for row in missing}
        what = f"{removed.name} cannot be taken out" if removed else "it cannot be replayed"
        self._check_lost(what, gone.values())
        names = ", ".join(f"{row.name} ({self._sources.why_lost(row) or row.place})" for row in gone.values())
        why = next(filter(None, map(self._sources.why_lost, gone.values())), None)
        hint = f"{why.hint}; {TO_KEEP}" if why else "bring it back, and ask again"
        raise Unavailable(f"{what}: the source is gone of {names}", f"nothing was changed; {hint}")

    def _check_lost(self, what: str, rows: Iterable[Checkpoint]) -> None:
        """Raise NotPermitted where the token no longer reaches a source: that can be mended, unlike what is gone."""
        for row in rows:
            if isinstance(why := self._sources.why_lost(row), NotPermitted):
                raise NotPermitted(f"{what}: {why}", f"nothing was changed; {why.hint}, and ask again; {TO_KEEP}")

    def _found(self, row: Checkpoint) -> Sighting | None:
        """Return where a row's content lies here, or else where it can be fetched again."""
        return self._sources.find(row) or self._sources.elsewhere(row)

    def _job(self, task: Task, number: int, route: Route, sightings: Mapping[int, Sighting]) -> Remake:
        rows = {row: self._history.checkpoints.get(row) for row in route.checkpoints}
        return Remake(task, number, route, self._version(route.start) if route.start else None, rows, sightings)

    def _costs(self, job: Remake, how: str) -> Plan:
        """Return the plan with what it costs. Raises Unavailable where the disk is too small."""
        base, method, steps = self.merge.base, self.merge.method_of((job.known or job).method), job.route.steps
        allow_open_files(max((self._opened(step, job) for step in steps), default=0))
        version = version_bytes(base, method, self.settings.out_dtype, self.settings.copy_code)
        at_once = "by" in (job.known or job).arguments  # then no read-out is a slot
        spilled = sum(float32_bytes(w.shape) for w in base.weights) if at_once else spilled_bytes(base, method)
        need = version + spilled + slots_bytes(base, method) * min(max(len(steps) - 1, 0), 2)
        fetch = Fetch.of(job, self.settings.hub.never_here)
        need += fetch.at_once
        free = self._store.free()
        if free < need:
            raise Unavailable(f"it needs {need:,} bytes of the disk, {free:,} are free", "nothing was changed")
        kept = [version.number for version in self._history.with_files()]
        if over := lacking(self._store, kept, None, need, self.settings.disk):
            raise Unavailable(over, "nothing was changed")
        folds = [
            sum(v.seconds.values()) - v.seconds.get("wait", 0.0)
            for v in self._history.versions(LOOKS_BACK)
            if v.seconds
        ]
        seconds = median(folds) * max(sum(len(step.merged) or 1 for step in steps), 1) if folds else 0.0
        nbytes = fetch.nbytes + sum(s.size for sighting in job.sightings.values() for s in sighting.stamps)
        last = job.known or job.parent
        return Plan(
            replace(job, line=line_of(last.number if last else None, self._history)), how, nbytes, fetch, seconds, need
        )

    def _opened(self, step: Step, job: Remake) -> int:
        """Return how many files a step has open at once: a re-merge those of all its checkpoints, before it reads any."""
        base, stamps = self.merge.base, [job.sightings[row].stamps for row, _ in step.merged]
        sources = sum(len(each) or len(base.layout.files) for each in stamps)  # what is to come is no finer, as a rule
        return sources + len(base.layout.files) + len(plan_slots(base, self.merge.method_of(step.method), {}))
