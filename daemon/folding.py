"""Folding: base, candidate and head stream by, weight by weight; each task vector enters the statistics and is read out.

Large weights go by in blocks of rows where statistic and rule allow it. Nothing here knows the history.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from math import sqrt
from typing import Any, Literal

import torch
from torch import Tensor

from ..plugins.formats.interface import Candidate, Contents
from ..plugins.rules._sums import inner, square
from ..plugins.rules.interface import NOTHING, Factored, Folded, LowRank, Slots, Statistic, Sum, Update
from ..state.errors import Busy
from ..state.prepared import Prepared
from ..state.reading import Reader
from ..state.records import Counts, FileDigest, Layout, Readout, Totals, Weight, WeightReport
from ..state.store import Draft
from .base import Base, Rows, read_contents
from .blocks import jobs_of
from .device import Home, send, send_slots, send_update, stream_on
from .forming import Forming
from .machine import Machine
from .method import Method
from .outgoing import Made, Merged, Outgoing
from .overlapping import Job, overlapped
from .progress import Progress
from .shipped import Shipping
from .sketch import Projection, Sketch
from .slots import KeptSlots, SlotKey, factorable, pays
from .stepping import Stepping
from .surveying import Surveyed, survey

Act = Literal["fold", "remove", "keep"]
MORE: Mapping[Act, int] = {"fold": 1, "remove": -1, "keep": 0}  # checkpoints that are in the model after it
NOBODY = Candidate("", "nothing", Contents(Layout({}, ()), {}), {}, ())  # has a task vector of zero everywhere


@dataclass(frozen=True)
class Head:
    """What a fold starts from: the totals and the slots of its parent; nothing before the first fold."""

    totals: Totals = field(default_factory=Totals)
    slots: Mapping[SlotKey, Layout] = field(default_factory=dict)
    sums: Mapping[str, str] = field(default_factory=dict)  # digest of each file of the slots, by its path
    prepared: Prepared = field(default_factory=Prepared)  # what was computed of them beforehand
    published: Layout | None = None  # what was read out of them, where it is published
    scale: float = 1.0  # by which it was


@dataclass
class FoldResult:
    """What a fold leaves in the draft, and what was learned on the way."""

    digest: str  # of the candidate's content
    totals: Totals
    reports: dict[str, WeightReport]
    readouts: dict[str, Readout]
    slots: list[dict[str, Any]]  # manifest entries: name, size, blake3, statistic, slot
    files: list[FileDigest]
    bytes_read: int
    bytes_written: int
    sketch: bytes  # of the task vector
    weights_digest: str = ""  # of the candidate's weights alone: its content's for methods that need no more


def fold(
    base: Base,
    candidate: Candidate,
    head: Head,
    method: Method,
    draft: Draft | None,
    machine: Machine,
    progress: Progress,
    act: Act = "fold",
    share: float = 1.0,
) -> FoldResult:
    """Fold one candidate onto the head's slots, into the draft; without one nothing is written, only measured.

    `share`: what the checkpoint counts; 2 means as if it were folded twice.
    `act` may be "remove", where all statistics are sums: then its terms are taken out again.
    Raises Busy if the candidate changed or shrank meanwhile, Refused if tied weights differ, DamagedFiles if the head's
    slots are not as they were written, Abandoned on request.
    """
    with ExitStack() as stack:
        trip = _Trip(base, candidate, head, method, draft, machine, progress, stack, act, share)
        if read_contents(candidate.here) != candidate.contents or not trip.opened_as_sighted():
            raise Busy(f"{candidate.name} was changed before it was folded")
        if not method.needs(base.weights) <= candidate.shipped.keys():
            raise Busy(f"{candidate.name} was looked at for another method")
        if draft is not None:
            trip.survey()
        trip.all_weights("removing" if act == "remove" else "folding")
        trip.read_the_rest()
        if not (trip.candidate.same_as_before() and trip.shipping.same_as_before()):
            raise Busy(f"{candidate.name} was changed while it was folded")
        trip.check_slots()
        return trip.finish()


def keep(base: Base, head: Head, method: Method, draft: Draft, machine: Machine, progress: Progress) -> FoldResult:
    """Write the head's slots, or zeros where it has none, into the draft as they are, and read them out.

    Raises Abandoned on request.
    """
    with ExitStack() as stack:
        trip = _Trip(base, NOBODY, head, method, draft, machine, progress, stack, "keep", 0.0)
        trip.all_weights("copying")
        trip.check_slots()
        return trip.finish()


def removable(base: Base, method: Method) -> bool:
    """Whether a checkpoint can be taken out by subtraction: whether every statistic that is kept is a sum."""
    return all(isinstance(statistic, Sum) for w in base.weights for statistic in method.keeps(w))


class _Trip:
    """One pass over all weights: the open files, and what is gathered on the way."""

    def __init__(
        self,
        base: Base,
        candidate: Candidate,
        head: Head,
        method: Method,
        draft: Draft | None,
        machine: Machine,
        progress: Progress,
        stack: ExitStack,
        act: Act,
        share: float,
    ) -> None:
        self._model, self._head, self._method, self._act = base, head, method, act
        self._machine, self._progress = machine, progress
        self._base = stack.enter_context(Reader(base.layout))
        self.candidate = stack.enter_context(Reader(candidate.contents.layout, feed=candidate.feed))
        self.shipping = Shipping(candidate, stack)
        self._kept = KeptSlots(head.slots, stack, hashed=bool(head.sums))
        self._published = stack.enter_context(Reader(head.published)) if head.published else None
        self._candidate, self._share = candidate, share
        self._vectors, self._sketch = Forming(candidate, self._base, self.candidate), Sketch()
        self._ranks = dict(self._ranks_after())
        self._out = Outgoing(base, method, draft, stack, self._ranks) if draft else None
        before = head.totals
        self._before = Counts(before.folded, before.shares)
        self._after = Counts(before.folded + MORE[act], before.shares + MORE[act] * share)
        self._surveyed = Surveyed()
        self._gathered: dict[str, _Gathered] = {}
        self._seed = 0  # of the weight that is read

    def _ranks_after(self) -> Iterator[tuple[str, int]]:
        """Yield the weights whose slot is kept as two factors after this fold, and how many columns these have."""
        able: dict[object, bool] = {}  # of weights that are alike
        for w in self._model.weights:
            before, more = self._kept.rank(w), self._vectors.rank(w)
            if before is None or more is None or self._share > 1 or not pays(before + more, w.shape):
                continue  # a share of 2 is two steps
            alike = w.kind, len(w.shape), self._method.keeps(w)
            if able.setdefault(alike, alike not in able and factorable(self._method, w)):
                yield w.name, before + more

    def opened_as_sighted(self) -> bool:
        """Whether the candidate's files were, when they were opened, those that admission looked into."""
        return self.candidate.opened_as(self._candidate.stamps) and self.shipping.opened_as_sighted()

    def survey(self) -> None:
        """Learn of the whole candidate what its fold needs to know beforehand."""

        def again() -> Forming:
            return Forming(self._candidate, self._base, self.candidate, hashed=False)

        self._surveyed = survey(self._model, again, self._method, self._machine, self._progress)

    def all_weights(self, doing: str) -> None:
        """Take every weight, one after the other: read ahead, folded several at once, written in order."""
        self._progress.begin(doing, len(self._model.weights), self._model.layout.nbytes)
        jobs = jobs_of(self._model.weights, self._method, self._machine, self._ranks, self._head.prepared)
        with overlapped(jobs, self._load, self._machine.memory, self._machine.threads) as blocks:
            for job, block in blocks:
                with self._progress.busy("fold"):
                    self._take(job, block)
                whole = self._model.layout.tensors[job.weight.name].nbytes
                self._progress.advance(
                    whole * (job.rows[1] - job.rows[0]) // job.weight.shape[0] if job.rows else whole
                )
                if job.last:
                    self._progress.next_weight()

    # -------------------------------------------------------------------------------------- one block: what is read

    def _load(self, job: Job) -> "Callable[[], _Block]":
        """Read all that one block needs; what it returns works on it."""
        with self._progress.busy("read"):
            w, rows, statistics = job.weight, job.rows, self._method.keeps(job.weight)
            wide = any(spec.dtype == "F64" for s in statistics for spec in s.slots(w).values())
            if job.first:
                self._seed = self._vectors.seed(w) if any("seed" in s.needs for s in statistics) else 0
            delta = self._vectors.block(w, rows, torch.float64 if wide else torch.float32)
            extra = self.shipping.of(w, rows, self._method.needs((w,)))
            start = rows[0] * (w.size // w.shape[0]) if rows else 0
            update = Update(self._surveyed.scaled(delta), self._share, self._seed, start, extra, self._surveyed.whole)
            if w.name in self._ranks:
                assert isinstance(delta, LowRank), "its rank was known"
                prepared = self._prepared(w, statistics[0], None, delta, factors=True)
                return partial(self._work_on_factors, job, delta, update, self._kept.factors(w), prepared)
            kept = {s: (self._kept.read(w, s, rows), self._prepared(w, s, rows, delta)) for s in statistics}
            return partial(self._work, job, delta, update, kept, self._published_delta(job, delta))

    def _prepared(
        self, w: Weight, statistic: Statistic, rows: Rows, delta: Tensor | LowRank, *, factors: bool = False
    ) -> Slots:
        """Return what was computed of one block beforehand, if it is of use."""
        if self._act != "fold" or _is_nothing(delta):
            return NOTHING
        return self._head.prepared.of(w, statistic, rows, factors=factors)

    def _published_delta(self, job: Job, delta: Tensor | LowRank) -> Tensor | None:
        """Return the head's read-out as what is published tells it, where reading it out of the slots would be costly."""
        w, rows = job.weight, job.rows
        factor = self._head.scale * self._method.lines.at(self._model.depths[w.name])
        needless = self._method.rule.rowwise(w) or not self._before.folded or _is_nothing(delta)
        if self._published is None or not factor or needless:
            return None
        theta, theta0 = self._published.read(w.name, rows), self._base.read(w.name, rows)
        return (theta.float() - theta0.float()) / factor

    # --------------------------------------------------------------------------------- one block: what is made of it

    def _work(
        self,
        job: Job,
        delta: Tensor | LowRank,
        u: Update,
        known: dict[Statistic, tuple[Slots, Slots]],
        published: Tensor | None,
    ) -> "_Block":
        """Fold one block and read it out."""
        w = job.weight
        with self._progress.busy("fold"):
            made = _Block(delta, Projection(w.name, w.shape), job.rows)
            made.dot = self._dot(w, {statistic: kept for statistic, (kept, _) in known.items()}, delta, published)
        if self._out is None:
            return made
        after: dict[Statistic, Slots] = {}
        home = Home(self._machine.device)
        with stream_on(self._machine.device), Stepping(self._progress):
            u = send_update(u, self._machine.device)
            for statistic in list(known):
                kept, prepared = (send_slots(slots, self._machine.device) for slots in known.pop(statistic))
                after[statistic] = made.note(self._entered(w, statistic, kept, prepared, u)).slots
            with self._progress.busy("fold"):
                merged = self._method.merged(after, w, self._after)
                made.slots = {statistic: home.bring_slots(slots) for statistic, slots in after.items()}
                made.merged = Merged.of(home.bring(merged))
        return made

    def _dot(
        self, w: Weight, kept: Mapping[Statistic, Slots], delta: Tensor | LowRank, published: Tensor | None
    ) -> float:
        """Return the task vector's inner product with the head's read-out, in one block."""
        if not self._before.folded or _is_nothing(delta):
            return 0.0
        merged = self._method.merged(kept, w, self._before) if self._method.rule.rowwise(w) else published
        if merged is None:
            return 0.0
        return delta.dot(merged) if isinstance(delta, LowRank) else inner(merged, delta)

    def _entered(self, w: Weight, statistic: Statistic, kept: Slots, prepared: Slots, u: Update) -> Folded:
        """Return a statistic's slots with the update in them, or out of them."""
        if self._act == "keep":
            return Folded(kept)
        if self._act == "remove":
            assert isinstance(statistic, Sum), "only sums are taken out of"
            return statistic.remove(kept, u, w)
        with self._progress.busy("decompose"):
            prepared = prepared if prepared or _is_nothing(u.given) else statistic.prepare(kept, w)
        with self._progress.busy("fold"):
            return statistic.fold(kept, u, w, self._before, prepared)

    def _work_on_factors(self, job: Job, delta: LowRank, u: Update, kept: LowRank, prepared: Slots) -> "_Block":
        """Fold the factors of a whole weight."""
        w, made = job.weight, _Block(delta, Projection(job.weight.name, job.weight.shape), None)
        (statistic,) = self._method.keeps(w)
        assert isinstance(statistic, Factored), "factorable says so"
        made.dot = delta.dot(kept) if self._before.folded else 0.0
        slot = kept
        if self._act != "keep" and delta.rank:
            with stream_on(self._machine.device):
                slot = Home(self._machine.device).bring(self._folded_factors(made, w, statistic, u, kept, prepared))
        (name,) = statistic.slots(w)
        made.slots, made.merged = {statistic: {name: slot}}, Merged.of(slot)
        return made

    def _folded_factors(
        self, made: "_Block", w: Weight, statistic: Factored, u: Update, kept: LowRank, prepared: Slots
    ) -> LowRank:
        """Return the factors after the update, where they were computed."""
        kept, prepared = send(kept, self._machine.device), send_slots(prepared, self._machine.device)
        u = send_update(u if self._act == "fold" else replace(u, share=-u.share), self._machine.device)
        assert isinstance(u.given, LowRank), "its rank was known"
        with self._progress.busy("decompose"):
            prepared = prepared or statistic.prepare_factors(kept, w)
        with self._progress.busy("fold"):
            folded = statistic.fold_factors(kept, u, u.given, w, prepared)
        made.note(Folded({}, folded.split_rank, folded.removed, folded.margin))
        return folded.slot

    # ------------------------------------------------------------------------------------- one block: what is written

    def _take(self, job: Job, block: "_Block") -> None:
        """Write what was made of one block, and add up what is known of it."""
        w = job.weight
        factor = self._method.lines.at(self._model.depths[w.name])
        self._gathered.setdefault(w.name, _Gathered()).add(block, factor)
        self._sketch.add_part(block.sketch)
        if self._out is not None and block.merged is not None:
            self._out.take(w, block.slots, block.merged)
            if job.last:
                self._out.end(w)

    # --------------------------------------------------------------------------------------------------- all weights

    def read_the_rest(self) -> None:
        """Read what is not folded, for the digest, and hold tied weights against each other."""
        self._vectors.read_the_rest(self._machine.memory, self._progress)
        self.shipping.read_the_rest(self._machine.memory)
        self._vectors.check_ties()

    def check_slots(self) -> None:
        """Raise DamagedFiles unless what was read of the head is what was once written."""
        self._kept.check(self._head.sums)

    def finish(self) -> FoldResult:
        """Close the files that were written, and add up."""
        out, readers = self._out, filter(None, (self._base, self.candidate, self._published))
        task_square = sum(gathered.task for gathered in self._gathered.values())
        if out is not None:
            with self._progress.busy("sync"):
                out.finish()
        norms = sqrt(task_square), MORE[self._act] * self._share, sqrt(out.readout_square) if out else 0.0
        return FoldResult(
            digest=self.shipping.digest_with(self._vectors.hexdigest()),
            weights_digest=self._vectors.hexdigest(),
            totals=self._head.totals.with_checkpoint(*norms),
            reports={name: sums.report(self._model.norms[name]) for name, sums in self._gathered.items()},
            readouts=out.readouts if out else {},
            slots=out.slots if out else [],
            files=out.files if out else [],
            bytes_read=self.shipping.nbytes
            + self._kept.nbytes
            + self._head.prepared.nbytes
            + sum(reader.nbytes for reader in readers),
            bytes_written=out.nbytes if out else 0,
            sketch=self._sketch.tobytes(),
        )


def _is_nothing(delta: Tensor | LowRank) -> bool:
    """Whether a task vector says that the checkpoint does not change a weight."""
    return isinstance(delta, LowRank) and not delta.rank


class _Block:
    """What was made of one block: the slots and the read-out to be written, and its part of each sum."""

    def __init__(self, delta: Tensor | LowRank, projection: Projection, rows: Rows) -> None:
        self.task = delta.norm() ** 2 if isinstance(delta, LowRank) else square(delta)
        self.sketch = projection.of(delta, rows)
        self.dot = 0.0  # the task vector's inner product with the head's read-out
        self.removed = self.split_rank = self.margin = 0.0
        self.slots: Made = {}
        self.merged: Merged | None = None

    def note(self, folded: Folded) -> Folded:
        """Take down what a fold tells of itself."""
        self.split_rank = max(self.split_rank, folded.split_rank)
        self.margin = min(filter(None, (self.margin, folded.margin)), default=0.0)
        self.removed += folded.removed
        return folded


@dataclass
class _Gathered:
    """The sums over one weight's blocks; squared Frobenius norms, float64."""

    task: float = 0.0
    removed: float = 0.0
    split_rank: float = 0.0
    margin: float = 0.0
    dot: float = 0.0

    def add(self, block: _Block, factor: float) -> None:
        """Add one block's; `factor` is that of the weight's depth."""
        self.task += block.task
        self.removed += block.removed
        self.split_rank = max(self.split_rank, block.split_rank)
        self.margin = min(filter(None, (self.margin, block.margin)), default=0.0)
        self.dot += factor * block.dot

    def report(self, base_norm: float) -> WeightReport:
        """Return what the fold did to the weight."""
        survived = 1.0 - self.removed / self.task if self.task else 1.0
        return WeightReport(sqrt(self.task), base_norm, self.split_rank, survived, self.dot, self.margin)
