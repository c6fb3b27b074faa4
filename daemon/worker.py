"""The worker makes a version of a ready checkpoint: draft, fold, gates, publish, commit, link, hooks, retention.

`draft` runs on the folding thread and touches only files; all else runs on the one thread that writes the history.
"""

import logging
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from ..plugins.rules.interface import Rule
from ..state.clock import utc_now
from ..state.errors import Busy, Refused
from ..state.history import History
from ..state.records import ADMITTED, Candidate, Checkpoint, Drafted, News, Reason, Sighting, Verdict, Version
from ..state.store import Draft, Store, version_digest
from .admission import examine
from .base import Base
from .folding import FoldResult, Head, content_digest, fold, plan_slots
from .opening import Merge
from .progress import Progress
from .publishing import Published, plan, publish
from .recovery import check_head
from .retention import to_drop
from .settings import Settings

log = logging.getLogger(__name__)

RESERVE = 64 * 2**20  # bytes that stay free for the history
OUT_DTYPE = {"base": None, "float32": "F32", "float16": "F16", "bfloat16": "BF16"}


@dataclass(frozen=True)
class Job:
    """One attempt at a fold: what the folding thread needs to know."""

    attempt: int
    checkpoint: Checkpoint
    candidate: Candidate
    number: int
    parent: Version | None
    folded_here: frozenset[str]  # digests folded from this place before; empty if a person asked for this one too
    again: bool = False  # a person wants it back, though an earlier version on another branch holds it


@dataclass(frozen=True)
class Made:
    """A sealed draft, and what its row in the history will say."""

    draft: Draft
    version: Version
    result: FoldResult


class Worker:
    """One merge's worker."""

    def __init__(
        self,
        settings: Settings,
        merge: Merge,
        store: Store,
        history: History,
        sight: Callable[[Path], Sighting | None],
    ) -> None:
        self.settings, self.merge, self.store, self.history = settings, merge, store, history
        self.trouble = ""  # what keeps folding from going on by itself, such as a full disk
        self._sight = sight

    # --------------------------------------------------------------------------------------------- what to do next

    def begin(self, row: Checkpoint, *, again: bool = False) -> Job | None:
        """Read a ready checkpoint's headers again, write the attempt and return the job.

        None if the disk is too full, or if it is not ready after all: then it settles again.
        """
        check_head(self.store, self.history)
        if not self._disk_suffices():
            return None
        candidate = self._candidate(row)
        if candidate is None:
            self.history.checkpoints.set_state(row.id, "settling", urgent=None)
            return None
        attempt = self.history.checkpoints.begin_attempt(row.id)
        here = frozenset() if row.urgent else self.history.checkpoints.digests_from(row.place)
        return Job(attempt, row, candidate, self.history.next_number(), self.history.head(), here, again)

    def _candidate(self, row: Checkpoint) -> Candidate | None:
        sighting = self._sight(Path(row.place))
        if sighting is None or sighting.fingerprint != row.fingerprint:
            return None
        try:
            candidate, verdict = examine(sighting, self.merge.base)
        except Busy:
            return None
        return candidate if verdict == ADMITTED else None

    def _disk_suffices(self) -> bool:
        """Compare what a version needs with what is free, before its first byte is written."""
        need = version_bytes(self.merge.base, self.merge.rule, self.settings.out_dtype) + RESERVE
        free = shutil.disk_usage(self.store.root).free
        full = free < need
        self.trouble = f"disk full: a version needs {need:,} bytes, {free:,} are free" if full else ""
        if full:
            self.retain()
        return not full

    # ----------------------------------------------------------------------------------------- on the folding thread

    def draft(self, job: Job, progress: Progress) -> Made | Verdict:
        """Fold, judge, publish and seal one draft, aside. Touches no row; raises what its steps raise."""
        progress.seconds.clear()
        if job.folded_here and (verdict := self._compare(job, progress)) != ADMITTED:
            return verdict
        draft = self.store.draft(job.number)
        made: Made | Verdict | None = None
        try:
            made = self._make(job, draft, progress)
        except Refused as refusal:
            made = Verdict("refused", refusal.reasons)
        finally:
            if not isinstance(made, Made):
                draft.drop()
        return made

    def _compare(self, job: Job, progress: Progress) -> Verdict:
        """Hold a checkpoint whose place had other content before; its files may only have been touched."""
        digest = content_digest(job.candidate, self.settings.memory, progress)
        if digest in job.folded_here:
            return ADMITTED
        found = "other content than what was folded from this place before"
        next_step = f"to fold it as one more checkpoint: mergd fold {job.checkpoint.place}"
        return Verdict("held", (Reason("changed", found, "a new name for a new checkpoint", next_step),))

    def _make(self, job: Job, draft: Draft, progress: Progress) -> Made | Verdict:
        """The way of a draft, in order."""
        settings, merge, parent = self.settings, self.merge, job.parent
        head = Head(parent.totals, self.store.slot_layouts(parent.number)) if parent else Head()
        result = fold(merge.base, job.candidate, head, merge.rule, draft, settings.memory, progress)
        drafted = Drafted(
            version=job.number,
            parent=parent.number if parent else None,
            checkpoint=job.checkpoint.name,
            model=None,
            totals=result.totals,
            weights=result.reports,
        )
        if (verdict := merge.sane.judge(drafted)) != ADMITTED:
            return verdict
        scale = merge.rule.scale(result.totals)
        published = publish(
            merge.base,
            result.readouts,
            scale,
            draft,
            out_dtype=OUT_DTYPE[settings.out_dtype],
            shard_size=settings.shard_size,
            copy_code=settings.copy_code,
            memory=settings.memory,
            progress=progress,
        )
        progress.begin("gates", 0, 0)
        for gate in merge.gates.values():
            if (verdict := gate.judge(replace(drafted, model=str(draft.model)))) != ADMITTED:
                return verdict
        progress.end()
        return self._seal(job, draft, result, scale, published, progress)

    def _seal(
        self, job: Job, draft: Draft, result: FoldResult, scale: float, published: Published, progress: Progress
    ) -> Made:
        """Write the manifest, and say what the version's row will be."""
        weights = [file for file in published.files if file.name.endswith(".safetensors")]
        version = Version(
            number=job.number,
            parent=job.parent.number if job.parent else None,
            cause="fold",
            checkpoint=job.checkpoint.id,
            rule=self.settings.rule,
            totals=result.totals,
            scale=scale,
            digest=version_digest(result.files, weights),
            created_at=utc_now(),
            seconds=dict(progress.seconds),
            bytes_read=result.bytes_read + published.bytes_read,
            bytes_written=result.bytes_written + published.bytes_written,
        )
        draft.seal(
            {
                "version": version.number,
                "parent": version.parent,
                "cause": version.cause,
                "checkpoint": {
                    "name": job.checkpoint.name,
                    "digest": result.digest,
                    "source": job.checkpoint.source,
                    "place": job.checkpoint.place,
                },
                "base_digest": self.merge.base.digest,
                "rule": version.rule,
                "parameters": asdict(self.merge.rule),
                "totals": asdict(version.totals),
                "scale": version.scale,
                "digest": version.digest,
                "slots": result.slots,
                "model": [asdict(file) for file in published.files],
            }
        )
        return Made(draft, version, result)

    # --------------------------------------------------------------------------------------------- commit and after

    def finish(self, job: Job, made: Made | Verdict, who: str) -> Checkpoint:
        """Commit what was made, or record the verdict; returns the checkpoint as it is now."""
        checkpoints = self.history.checkpoints
        if isinstance(made, Verdict):
            assert made.decision != "admitted"
            checkpoints.end_attempt(job.attempt, made.decision)
            log.warning("%s is %s: %s", job.checkpoint.name, made.decision, "; ".join(map(str, made.reasons)))
            return checkpoints.set_state(job.checkpoint.id, made.decision, *made.reasons, urgent=None)
        known = self._known(job, made.result.digest)
        if known is not None:
            made.draft.drop()
            checkpoints.end_attempt(job.attempt, "duplicate")
            return self._record_duplicate(job, known, made.result.digest)
        self._commit(job, made, who)
        return checkpoints.get(job.checkpoint.id)

    def _known(self, job: Job, digest: str) -> Checkpoint | None:
        """Return the row that this content was folded from: always within the head's line, elsewhere unless again."""
        head = self.history.head()
        in_line = self.history.checkpoint_in_line(digest, head.number if head else None)
        if in_line is not None or job.again:
            return in_line
        return self.history.checkpoints.holding(digest)

    def _record_duplicate(self, job: Job, known: Checkpoint, digest: str) -> Checkpoint:
        reason = Reason(
            "known-content",
            f"the content of {known.name} under the name {job.checkpoint.name}",
            "content that was not folded before",
            f"nothing; to have it back after a rollback: mergd fold --again {known.name}",
        )
        same = None if known.id == job.checkpoint.id else known.id
        log.info("%s: %s", job.checkpoint.name, reason)
        return self.history.checkpoints.set_state(
            job.checkpoint.id, "folded", reason, digest=digest, urgent=None, duplicate_of=same
        )

    def _commit(self, job: Job, made: Made, who: str) -> None:
        """Rename the draft in, make it true in one transaction, and let the link follow."""
        version = made.version
        self.store.install(made.draft, version.number)
        self.history.commit_fold(
            version, made.result.digest, list(made.result.reports.values()), job.attempt, who, list(self.merge.hooks)
        )
        self.store.point(version.number)
        log.info(
            "%s is folded: v%d, %d checkpoints, scale %.4g",
            job.checkpoint.name,
            version.number,
            version.totals.folded,
            version.scale,
        )

    def after_move(self) -> None:
        """Do what follows a move of the head: tell the hooks, and let go of files that nothing needs."""
        self.tell_hooks()
        self.retain()

    def tell_hooks(self) -> None:
        """Tell each hook what it is owed, in order; one that fails is told again later, and holds up no other."""
        failed: set[str] = set()
        for name, move in self.history.owed():
            hook, version = self.merge.hooks.get(name), self.history.version(move.to_version)
            if hook is None or version is None or name in failed:
                continue
            model = str(self.store.model(version.number))
            try:
                hook.tell(
                    News(move.id, version.number, move.from_version, move.who, move.why, model, version.digest, move.at)
                )
            except Exception:
                log.exception("the hook %s failed; it will be told again", name)
                failed.add(name)
            else:
                self.history.told(name, move.id)

    def retain(self) -> None:
        """Drop the files of versions that retention lets go; first the promise, then the bytes."""
        settings = self.settings
        versions, moves = self.history.versions(), self.history.moves(1)
        for number in to_drop(versions, moves, datetime.now(UTC), settings.keep_last, settings.keep_within):
            self.history.drop_files(number)
            self.store.drop(number)
            log.info("the files of v%d are dropped; its row stays", number)


def version_bytes(base: Base, rule: Rule, out_dtype: str) -> int:
    """Return what one version takes on disk, in bytes: slots and published weights."""
    slots = sum(tensor.nbytes for tensors in plan_slots(base, rule).values() for tensor in tensors)
    return slots + sum(tensor.nbytes for tensor in plan(base, OUT_DTYPE[out_dtype]))
