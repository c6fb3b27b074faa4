"""Remaking makes a version, or files of one, by repeating causes: it takes a route from kept slots, step by step.

It runs on the folding thread and touches only files, as drafting does: no row of the history.
"""

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from math import sqrt
from typing import Any

from ..plugins.formats.interface import Candidate
from ..plugins.rules.batch_interface import BatchRule
from ..state.clock import utc_now
from ..state.committing import Commit
from ..state.errors import Busy, Damaged, DamagedFiles, MergdError, Refused
from ..state.linking import Linking
from ..state.records import ADMITTED, Cause, Checkpoint, Contribution, Sighting, Task, Version
from ..state.store import Draft, Store
from .admission import Admission
from .ancestry import Line
from .blocks import machine_of
from .carding import add_card
from .cards import WORDS
from .drafting import head_at
from .fetching import files_of
from .folding import FoldResult, Head, fold, keep
from .merging import Source, remerge
from .method import Lines, Method, make_rule
from .opening import Merge
from .progress import Progress
from .publishing import Published, publish
from .refetching import Refetching
from .replaying import Route, Step
from .sealing import contents_of_manifest, digest_of, slots_of
from .settings import Settings


@dataclass(frozen=True)
class Remake:
    """One try at a task: all that remaking needs to know."""

    task: Task
    number: int  # of the version that is made, or whose files are made once more
    route: Route
    start: Version | None  # where the route begins; none: from nothing
    rows: Mapping[int, Checkpoint]  # what the steps are about, by id
    sightings: Mapping[int, Sighting]  # where their sources lie
    known: Version | None = None  # the version whose files are made once more; none: a new one is made
    check: bool = False  # whether what is made of a known version is only held against it
    parent: Version | None = None  # the head that a new version comes after
    about: Checkpoint | None = None  # what the version folded, or is made without
    cause: Cause = "remove"  # of a new version
    arguments: Mapping[str, Any] = field(default_factory=dict)  # of its cause
    method: Mapping[str, Any] = field(default_factory=dict)  # by which it is folded onto, as versions have it
    line: Line = field(default_factory=Line)  # that leads to the known version, or to the parent; for the card

    @property
    def name(self) -> str:
        """What people call it."""
        if self.known is not None:
            return f"replaying v{self.number}"
        doing = {"remove": f"removing {self.about.name if self.about else ''}", "read-out": "reading out anew"}
        return doing.get(self.cause, "merging anew")


@dataclass(frozen=True)
class Remade:
    """A sealed draft, and what its row in the history says."""

    draft: Draft
    version: Version
    result: FoldResult


class Remaking:
    """Remakes the versions of one merge."""

    def __init__(self, settings: Settings, merge: Merge, store: Store, commit: Commit) -> None:
        self.settings = settings
        self.merge, self._store, self._commit = merge, store, commit
        self.fetching = Refetching(settings, store)

    def take_settings(self, settings: Settings, merge: Merge) -> None:
        """Go on with other settings."""
        self.settings, self.merge, self.fetching.settings = settings, merge, settings

    def remake(self, job: Remake, progress: Progress) -> Remade:
        """Take the route and publish what it comes to. Whatever ends it leaves no draft behind.

        Raises Damaged where other bytes come of it than before, Busy where a source holds other content than it did.
        """
        progress.seconds.clear()
        draft = self._commit.draft(job.number)
        try:
            result = self._take(job, draft, progress)
            return self._publish(job, draft, result, progress)
        except BaseException:
            draft.drop()
            raise

    def _take(self, job: Remake, draft: Draft, progress: Progress) -> FoldResult:
        """Take every step; each but the last is written aside, where only the next one reads it."""
        head = head_at(job.start, self._store)
        if not job.route.steps:
            at = job.known.method if job.known else job.method
            return self._take_step(job, Step("keep", method=at), head, draft, progress)
        aside: list[Draft] = []
        try:
            for number, step in enumerate(job.route.steps, start=1):
                last = number == len(job.route.steps)
                into = draft if last else self._commit.draft(job.number, f"-step-{number}")
                aside += [] if last else [into]
                counting, midway = partial(self._counting, job, step), number > 1
                with self.fetching.here(job.sightings, step.rows, counting, progress, midway=midway) as here:
                    result = self._take_step(replace(job, sightings=here), step, head, into, progress)
                self._compare_slots(step, result)
                head = Head(result.totals, self._store.layouts_in(into.slots, result.slots))
                while len(aside) > (0 if last else 1):
                    aside.pop(0).drop()
            return result
        finally:
            for left in aside:
                left.drop()

    def _take_step(self, job: Remake, step: Step, head: Head, into: Draft, progress: Progress) -> FoldResult:
        base, method = self.merge.base, self.merge.method_of(step.method)
        machine, abandoned = machine_of(self.settings, base, method), progress.stopped
        if step.act == "keep":
            return keep(base, head, method, into, machine, progress)
        if step.act == "merge":
            sources = [Source(self._candidate(job, row, method).until(abandoned), share) for row, share in step.merged]
            batch, lines = self._batch(job, step) or (None, method.lines)
            result, digests = remerge(base, sources, replace(method, lines=lines), batch, into, machine, progress)
            for (row, _), either in zip(step.merged, digests, strict=True):
                self._compare_source(job.rows[row], *either)
            return result
        assert step.checkpoint is not None
        candidate = self._candidate(job, step.checkpoint, method).until(abandoned)
        result = fold(base, candidate, head, method, into, machine, progress, step.act, step.share)
        self._compare_source(job.rows[step.checkpoint], result.digest, result.weights_digest)
        return result

    def _batch(self, job: Remake, step: Step) -> tuple[BatchRule, Lines] | None:
        """Return the batch rule by which the version that a re-merge makes is read, if that is one, and its factors by depth."""
        makes_it = job.known is None or step.makes == job.known.number
        by = (job.known or job).arguments.get("by") if makes_it else None
        return (make_rule(by["rule"], by["parameters"]), Lines(**by["lines"])) if by else None

    def _candidate(self, job: Remake, row: int, method: Method) -> Candidate:
        """Return a source as a method needs it, with what earlier methods needed of it, which is in its digest."""
        base, sighting = self.merge.base, job.sightings[row]
        earlier = (self.merge.method, self.merge.method_at(job.parent), self.merge.method_at(job.start))
        candidate, verdict = Admission(base, self.settings, method, earlier).examine(sighting)
        if candidate is None or verdict != ADMITTED:
            raise Refused(*verdict.reasons)
        return candidate

    def _counting(self, job: Remake, step: Step, row: int, sighting: Sighting) -> Collection[str] | None:
        """Return the weight files of a source that a step reads; None for all, where its headers do not tell."""
        try:
            return files_of(
                self._candidate(replace(job, sightings={row: sighting}), row, self.merge.method_of(step.method))
            )
        except MergdError:
            return None  # nothing vouches for headers alone: it is judged once all of it is here

    def _compare_source(self, row: Checkpoint, digest: str, weights_digest: str) -> None:
        """Hold what a source had against what it had when it was folded, maybe by a method that needs its weights alone."""
        if row.digest not in (digest, weights_digest):
            hint = f"bring the old one back; to go on without it: mergd remove {row.digest} --exact"
            raise Busy(f"the source of {row.name} holds other content now", hint)

    def _compare_slots(self, step: Step, result: FoldResult) -> None:
        """Hold what a step came to against what it came to before."""
        if step.makes is None:
            return
        before = self._readable_manifest(step.makes)
        if before and slots_of(result.slots) != slots_of(before["slots"]):
            raise Damaged(f"repeating v{step.makes} gave other slots than it has", _elsewhere(before))

    def _publish(self, job: Remake, draft: Draft, result: FoldResult, progress: Progress) -> Remade:
        """Write the model folder and the manifest, and say what the version's row will be, or hold it against its row."""
        method = self._read_by(job)
        scale = method.factor(result.totals)
        linking = Linking(
            self._store, job.parent
        )  # of a known version, nothing: what is damaged may be linked elsewhere
        published = publish(
            self.merge.base, result.readouts, scale, draft, self._as_before(job), progress, linking, method.lines
        )
        if job.known is not None:
            self._compare_known(job.known, digest_of(result, published), published)
        version = job.known or self._row(job, result, published, scale, progress)
        line = job.line.then(version, job.about, *job.rows.values())
        files = add_card(draft, published.files, version, line, method, self.settings, self.merge)
        published = replace(published, files=files)
        self._commit.seal(draft, self._manifest(job, version, result, published))
        return Remade(draft, version, result)

    def _read_by(self, job: Remake) -> Method:
        """Return the method by which a version is read out: that by which it is folded onto, or a batch rule."""
        made = job.known or job
        method, by = self.merge.method_of(made.method), made.arguments.get("by")
        return method.read_at_once(by) if by else method

    def _compare_known(self, version: Version, digest: str, published: Published) -> None:
        """Hold what came out against what it was. Raises Damaged."""
        before = self._readable_manifest(version.number)
        if digest != version.digest:
            raise Damaged(f"repeating {version} gave other bytes than it had", _elsewhere(before))
        sums = {file["name"]: file["blake3"] for file in before.get("model", [])}
        others = [file.name for file in published.files if before and sums.get(file.name) != file.blake3]
        if others:
            hint = "nothing was changed; bring the base model's own files back as they were, and the setting copy_code"
            raise Damaged(f"{version} had another {', '.join(others)}", hint)

    def _manifest(self, job: Remake, version: Version, result: FoldResult, published: Published) -> dict[str, Any]:
        """Return the manifest that a known version has, if it is sound, else a new one."""
        before = self._readable_manifest(version.number) if job.known else {}
        if before:  # but what words say of it may be worded otherwise since
            words = [asdict(file) for file in published.files if file.name in WORDS]
            return before | {"model": [file for file in before["model"] if file["name"] not in WORDS] + words}
        row, brought = job.about, None
        if version.cause == "fold" and row is not None and job.route.steps:
            norm = sqrt(sum(report.task_norm**2 for report in result.reports.values()))
            brought = Contribution(version.number, row.name, row.contributor, norm, result.sketch)
        merged = job.rows.values() if version.cause == "re-merge" else ()
        return contents_of_manifest(version, row, self.settings, self.merge, result, published, brought, merged)

    def _readable_manifest(self, number: int) -> dict[str, Any]:
        try:
            return self._store.manifest(number)
        except DamagedFiles:
            return {}

    def _row(self, job: Remake, result: FoldResult, published: Published, scale: float, progress: Progress) -> Version:
        return Version(
            number=job.number,
            parent=job.parent.number if job.parent else None,
            cause=job.cause,
            checkpoint=None,
            rule=self._read_by(job).name,
            totals=result.totals,
            scale=scale,
            digest=digest_of(result, published),
            created_at=utc_now(),
            seconds=dict(progress.seconds),
            bytes_read=result.bytes_read + published.bytes_read,
            bytes_written=result.bytes_written + published.bytes_written,
            removed=job.about.id if job.about else None,
            arguments=job.arguments,
            method=job.method,
        )

    def _as_before(self, job: Remake) -> Settings:
        """Return the settings with which a known version was published: they decide how its weights are sharded."""
        if job.known is None:
            return self.settings
        shard_size = self._readable_manifest(job.number).get("shard_size", self.settings.shard_size)
        return self.settings.model_copy(update={"shard_size": shard_size})


def _elsewhere(before: Mapping[str, Any]) -> str:
    return f"nothing was changed; it was made on {before.get('made_on', 'what nobody wrote down')}"
