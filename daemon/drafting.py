"""Drafting makes a version aside, worth nothing until it is committed: fold, judge, publish, ask the gates, seal.

It runs on the folding thread and touches only files: no row of the history.
"""

from dataclasses import dataclass, replace
from functools import partial

from ..plugins.gates.program import Model
from ..state.clock import utc_now
from ..state.committing import Commit
from ..state.errors import Refused
from ..state.linking import Linking
from ..state.prepared import Prepared
from ..state.records import ADMITTED, Drafted, Verdict, Version
from ..state.store import Draft, Store
from .blocks import machine_of
from .carding import add_card
from .folding import FoldResult, Head, fold
from .forming import content_digest
from .gating import DRAFT, Gating, Models
from .judging import Job, Known, Turned, contribution_of, held_at_start, judged, seen_here
from .opening import Merge
from .pinning import pin
from .preparing import prepared_for
from .progress import Progress
from .publishing import Published, publish
from .sealing import contents_of_manifest, digest_of
from .settings import Settings


@dataclass(frozen=True)
class Made:
    """A sealed draft, and what its row in the history will say."""

    draft: Draft
    version: Version
    result: FoldResult


Outcome = Made | Known | Turned


class Drafting:
    """Makes the drafts of one merge."""

    def __init__(self, settings: Settings, merge: Merge, store: Store, commit: Commit) -> None:
        self.settings = settings
        self.merge, self._store, self._commit = merge, store, commit
        self.gating = Gating()

    def draft(self, job: Job, progress: Progress) -> Outcome:
        """Make and seal the draft of one job; a verdict if it is not admitted. Raises what its steps raise.

        Whatever else ends it leaves no draft behind.
        """
        progress.seconds.clear()
        job = replace(job, candidate=job.candidate.until(progress.stopped))
        if job.folded_here:
            digest = content_digest(job.candidate, self.settings.buffers, progress)
            if (outcome := seen_here(job, digest, self.settings.on_change)) is not None:
                return outcome
        if (turned := held_at_start(job)) is not None:
            return turned
        draft = self._commit.draft(job.number)
        made: Outcome | None = None
        try:
            made = self._make(job, draft, progress)
        except Refused as refusal:
            made = Turned(Verdict("refused", refusal.reasons))
        finally:
            if not isinstance(made, Made):
                draft.drop()
        return made

    def _make(self, job: Job, draft: Draft, progress: Progress) -> Outcome:
        """The way of a draft, in order."""
        settings, merge, parent = self.settings, self.merge, job.start.parent
        method = merge.method_at(parent)
        machine = machine_of(settings, merge.base, method)
        prepared = prepared_for(parent, self._store, settings)
        head = head_at(parent, self._store, published=method.is_costly(merge.base.weights), prepared=prepared)
        result = fold(merge.base, job.candidate, head, method, draft, machine, progress, share=job.share)
        drafted = judged(job, result, merge)
        if not isinstance(drafted, Drafted):
            return drafted
        scale = method.factor(result.totals)
        linking = Linking(self._store, parent)
        published = publish(merge.base, result.readouts, scale, draft, settings, progress, linking, method.lines)
        version = self._version(job, result, scale, digest_of(result, published))
        line = job.line.then(version, replace(job.checkpoint, digest=result.digest))
        files = add_card(draft, published.files, version, line, method, settings, merge)
        published = replace(published, files=files)
        drafted = replace(drafted, model=str(draft.model))
        if (verdict := self._ask_gates(job, drafted, version, result.digest, progress)) != ADMITTED:
            return Turned(verdict, result.digest)
        pin(job.candidate, draft, settings.archive, progress)
        return self._seal(job, draft, version, result, published, progress)

    def _ask_gates(self, job: Job, drafted: Drafted, version: Version, digest: str, progress: Progress) -> Verdict:
        """Return the first verdict of a user's gate that does not admit the draft, and that nobody lifted.

        Programs, which take longest, are asked last. digest: the checkpoint's.
        """
        progress.begin("gates", 0, 0)
        lift = partial(job.past.decisions.lift, contents=(digest, job.checkpoint.fingerprint))
        verdicts = (lift(gate.judge(drafted)) for gate in self.merge.gates.values())
        verdict = next((verdict for verdict in verdicts if verdict != ADMITTED), ADMITTED)
        if verdict == ADMITTED and job.past.measured:
            verdict = lift(self.gating.judge(job.past.measured, self._models(job, drafted, version), progress))
        progress.end()
        return verdict

    def _models(self, job: Job, drafted: Drafted, version: Version) -> Models:
        """Return what programs measure: the draft, and what it is held against, if they never measured that."""
        place, base, head = drafted.place, self.merge.base, job.start.head
        before = None
        if head is not None:
            path = str(self._store.model(head.number))
            before = Model(head.digest, path, str(head), place, head.number, parent=head.parent)
        now = Model(
            version.digest, str(drafted.model), DRAFT, place, version.number, drafted.checkpoint, version.parent
        )
        return Models(Model(base.digest, base.path, "the base model", place), before, now)

    def _version(self, job: Job, result: FoldResult, scale: float, digest: str) -> Version:
        """Return what the version's row will be, but for when it was made and what that cost."""
        return Version(
            number=job.number,
            parent=job.start.parent.number if job.start.parent else None,
            cause="fold",
            checkpoint=job.checkpoint.id,
            rule=self.merge.method_at(job.start.parent).name,
            totals=result.totals,
            scale=scale,
            digest=digest,
            created_at="",
            arguments={"share": job.share} if job.share != 1.0 else {},
            gates=(*self.merge.gates, *(name for name, gate in job.past.measured.items() if gate.program.enforces)),
            method=job.start.parent.method if job.start.parent else {},
        )

    def _seal(
        self, job: Job, draft: Draft, version: Version, result: FoldResult, published: Published, progress: Progress
    ) -> Made:
        """Write the manifest, and say what the version's row will be."""
        version = replace(
            version,
            created_at=utc_now(),
            bytes_read=result.bytes_read + published.bytes_read,
            bytes_written=result.bytes_written + published.bytes_written,
        )
        about, brought = replace(job.checkpoint, digest=result.digest), contribution_of(job, result)
        contents = contents_of_manifest(version, about, self.settings, self.merge, result, published, brought)
        progress.begin("syncing", 0, 0)
        with progress.busy("sync"):
            self._commit.seal(draft, contents)
        progress.end()
        return Made(draft, replace(version, seconds=dict(progress.seconds)), result)


def head_at(parent: Version | None, store: Store, *, published: bool = False, prepared: Prepared | None = None) -> Head:
    """Return what a fold onto a version starts from; `published`: with the published weights, for their direction.

    Raises DamagedFiles where its slots are not as they were written.
    """
    if parent is None:
        return Head()
    slots, sums = store.slot_layouts(parent.number), store.slot_sums(parent.number)
    model = store.model_layout(parent.number) if published else None
    return Head(parent.totals, slots, sums, prepared or Prepared(), model, parent.scale)
