"""Folding: base, candidate and head stream by, weight by weight; each task vector enters the statistics and is read out.

Large weights go by in blocks of rows where statistic and rule allow it. Nothing here knows the history or the threads.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from math import sqrt
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ..plugins.formats.interface import Candidate, Contents
from ..plugins.rules._matrices import untouched
from ..plugins.rules._sums import inner, square
from ..plugins.rules.interface import NOTHING, Folded, LowRank, Slots, Statistic, Sum, Update
from ..state.errors import Busy, DamagedFiles, Unavailable
from ..state.prepared import Prepared
from ..state.reading import TORCH_DTYPE, Reader
from ..state.records import Counts, FileDigest, Layout, Readout, Totals, Weight, WeightReport
from ..state.store import Draft
from .base import COPIES, Base, float32_bytes, read_contents, row_blocks
from .forming import Forming, Rows
from .method import Method
from .outgoing import Outgoing, SlotKey, key_of
from .progress import Progress
from .shipped import Shipping
from .sketch import Projection, Sketch
from .surveying import Surveyed, survey

Act = Literal["fold", "remove", "keep"]
MORE: Mapping[Act, int] = {"fold": 1, "remove": -1, "keep": 0}  # checkpoints that are in the model after it
NOBODY = Candidate("", "nothing", Contents(Layout({}, ()), {}), {}, ())  # has a task vector of zero everywhere
OTHERS, PER_SLOT = (
    6,
    3,
)  # blocks that are alive at once: both weights, what is made of them; of a slot, the old, the term, the new


@dataclass(frozen=True)
class Head:
    """What a fold starts from: the totals and the slots of its parent; nothing before the first fold."""

    totals: Totals = field(default_factory=Totals)
    slots: Mapping[SlotKey, Layout] = field(default_factory=dict)
    sums: Mapping[str, str] = field(default_factory=dict)  # sha256 of each file of the slots, by its path
    published: Layout | None = None  # what was read out of them, where it is published
    scale: float = 1.0  # by which it was
    prepared: Prepared = field(default_factory=Prepared)  # what was computed of them beforehand


@dataclass
class FoldResult:
    """What a fold leaves in the draft, and what was learned on the way."""

    digest: str  # of the candidate's content
    totals: Totals
    reports: dict[str, WeightReport]
    readouts: dict[str, Readout]
    slots: list[dict[str, Any]]  # manifest entries: name, size, sha256, statistic, slot
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
    memory: int,
    progress: Progress,
    act: Act = "fold",
    share: float = 1.0,
) -> FoldResult:
    """Fold one candidate onto the head's slots, into the draft; without one nothing is written, only measured.

    `memory` bounds the working buffers of blocks, in bytes; a matrix that a rule needs whole is held whole. `share`: what
    the checkpoint counts; 2 means as if it were folded twice.
    `act` may be "remove", where all statistics are sums: then its terms are taken out again.
    Raises Busy if the candidate changed or shrank meanwhile, Refused if tied weights differ, DamagedFiles if the head's
    slots are not as they were written, Abandoned on request.
    """
    with ExitStack() as stack:
        trip = _Trip(base, candidate, head, method, draft, memory, progress, stack, act, share)
        if read_contents(Path(candidate.place)) != candidate.contents or not trip.opened_as_sighted():
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


def keep(base: Base, head: Head, method: Method, draft: Draft, memory: int, progress: Progress) -> FoldResult:
    """Write the head's slots, or zeros where it has none, into the draft as they are, and read them out.

    Raises Abandoned on request.
    """
    with ExitStack() as stack:
        trip = _Trip(base, NOBODY, head, method, draft, memory, progress, stack, "keep", 0.0)
        trip.all_weights("copying")
        trip.check_slots()
        return trip.finish()


def blocks_of(w: Weight, method: Method, memory: int) -> list[Rows]:
    """Return the blocks of rows that a weight goes by in, so small that what is alive of them at once fits the memory."""
    by_rows = method.rowwise(w)
    kept = sum(spec.nbytes for statistic in method.keeps(w) for spec in statistic.slots(w).values())
    alive = (OTHERS * float32_bytes(w.shape) + PER_SLOT * kept) // COPIES
    return row_blocks(w.shape, max(float32_bytes(w.shape), alive), memory) if by_rows else [None]


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
        memory: int,
        progress: Progress,
        stack: ExitStack,
        act: Act,
        share: float,
    ) -> None:
        self._model, self._head, self._method, self._draft, self._act = base, head, method, draft, act
        self._memory, self._progress, self._stack = memory, progress, stack
        self._base = stack.enter_context(Reader(base.layout))
        self.candidate = stack.enter_context(Reader(candidate.contents.layout))
        self.shipping = Shipping(candidate, stack)
        self._kept = {
            key: stack.enter_context(Reader(layout, hashed=bool(head.sums))) for key, layout in head.slots.items()
        }
        self._out = Outgoing(base, method, draft, stack) if draft else None
        self._published = stack.enter_context(Reader(head.published)) if head.published else None
        self._candidate, self._share = candidate, share
        self._vectors, self._sketch = Forming(candidate, self._base, self.candidate), Sketch()
        before = head.totals
        self._before = Counts(before.folded, before.shares)
        self._after = Counts(before.folded + MORE[act], before.shares + MORE[act] * share)
        self._surveyed = Surveyed()
        self._reports: dict[str, WeightReport] = {}
        self._task_square = 0.0

    def opened_as_sighted(self) -> bool:
        """Whether the candidate's files were, when they were opened, those that admission looked into."""
        return self.candidate.opened_as(self._candidate.stamps) and self.shipping.opened_as_sighted()

    def all_weights(self, doing: str) -> None:
        """Take every weight, one after the other."""
        self._progress.begin(doing, len(self._model.weights), self._model.layout.nbytes)
        for weight in self._model.weights:
            self.fold_weight(weight)
            self._progress.next_weight()

    def survey(self) -> None:
        """Learn of the whole candidate what its fold needs to know beforehand."""

        def again() -> Forming:
            return Forming(self._candidate, self._base, self.candidate, hashed=False)

        self._surveyed = survey(self._model, again, self._method, self._memory, self._progress)

    # ------------------------------------------------------------------------------------------------- one weight

    def fold_weight(self, w: Weight) -> None:
        """Fold one weight, block by block, and read it out at once."""
        statistics = self._method.keeps(w)
        gathered, projection = _Gathered(), Projection(w.name, w.shape)
        factor = self._method.lines.at(self._model.depths[w.name])
        wide = any(spec.dtype == "F64" for s in statistics for spec in s.slots(w).values())
        dtype = torch.float64 if wide else torch.float32
        needs = self._method.needs((w,))
        seed = self._vectors.seed(w) if any("seed" in statistic.needs for statistic in statistics) else 0
        for rows, delta in self._vectors.of(w, blocks_of(w, self._method, self._memory), dtype):
            gathered.task += delta.norm() ** 2 if isinstance(delta, LowRank) else square(delta)
            self._sketch.add(projection, delta, rows)
            before = {statistic: self._kept_blocks(w, statistic, rows) for statistic in statistics}
            gathered.dot += factor * self._dot(w, rows, before, delta)
            extra = self.shipping.of(w, rows, needs)
            if self._out is not None:
                update = self._update(w, rows, delta, seed, extra)
                after = {
                    s: self._fold_block(self._out, w, s, rows, kept, update, gathered) for s, kept in before.items()
                }
                gathered.zero &= self._out.read_out(w, self._method.merged(after, w, self._after), after)
            whole = self._model.layout.tensors[w.name].nbytes
            self._progress.advance(whole * (rows[1] - rows[0]) // w.shape[0] if rows else whole)
        if self._out is not None:
            self._out.end(w, gathered.zero)
        self._task_square += gathered.task
        self._reports[w.name] = gathered.report(self._model.norms[w.name])

    def _update(self, w: Weight, rows: Rows, delta: Tensor | LowRank, seed: int, extra: Slots) -> Update:
        """Return one block's news, normalised where the method wants it so."""
        start = rows[0] * (w.size // w.shape[0]) if rows else 0
        return Update(self._surveyed.scaled(delta), self._share, seed, start, extra, self._surveyed.whole)

    def _dot(self, w: Weight, rows: Rows, before: Mapping[Statistic, Slots], delta: Tensor | LowRank) -> float:
        """Return the task vector's inner product with the head's read-out, in one block."""
        if not self._before.folded or (isinstance(delta, LowRank) and not delta.rank):
            return 0.0
        merged = self._readout_before(w, rows, before)
        if merged is None:
            return 0.0
        return delta.dot(merged) if isinstance(delta, LowRank) else inner(merged, delta)

    def _readout_before(self, w: Weight, rows: Rows, before: Mapping[Statistic, Slots]) -> Tensor | None:
        """Return the head's read-out; where that would be costly, as far as it can be told from what is published."""
        if self._method.rule.rowwise(w):
            return self._method.merged(before, w, self._before)
        factor = self._head.scale * self._method.lines.at(self._model.depths[w.name])
        if self._published is None or not factor:
            return None
        theta, theta0 = self._published.read(w.name, rows), self._base.read(w.name, rows)
        return (theta.float() - theta0.float()) / factor

    def _fold_block(
        self,
        out: Outgoing,
        w: Weight,
        statistic: Statistic,
        rows: Rows,
        kept: Slots,
        update: Update,
        gathered: "_Gathered",
    ) -> Slots:
        folded = self._entered(w, statistic, rows, kept, update)
        out.write(w, statistic, folded.slots)
        gathered.split_rank = max(gathered.split_rank, folded.split_rank)
        gathered.margin = min(filter(None, (gathered.margin, folded.margin)), default=0.0)
        gathered.removed += folded.removed
        return folded.slots

    def _entered(self, w: Weight, statistic: Statistic, rows: Rows, kept: Slots, update: Update) -> Folded:
        if self._act == "fold":
            prepared = NOTHING if untouched(update) else self._head.prepared.of(w, statistic, rows)
            return statistic.fold(kept, update, w, self._before, prepared)
        if self._act == "keep":
            return Folded(kept)
        assert isinstance(statistic, Sum), "only sums are taken out of"
        return statistic.remove(kept, update, w)

    def _kept_blocks(self, w: Weight, statistic: Statistic, rows: Rows) -> Slots:
        return {slot: self._kept_block(w, statistic, slot, rows) for slot in statistic.slots(w)}

    def _kept_block(self, w: Weight, statistic: Statistic, slot: str, rows: Rows) -> Tensor:
        """Return the head's slot, or zeros before the first fold."""
        reader = self._kept.get(key_of(statistic, slot))
        if reader is not None:
            with _ours(reader.layout.files):
                return reader.read(w.name, rows)
        spec = statistic.slots(w)[slot]
        shape = (rows[1] - rows[0], *spec.shape[1:]) if rows is not None else spec.shape
        return torch.zeros(shape, dtype=TORCH_DTYPE[spec.dtype])

    # --------------------------------------------------------------------------------------------------- all weights

    def read_the_rest(self) -> None:
        """Read what is not folded, for the digest, and hold tied weights against each other."""
        self._vectors.read_the_rest(self._memory, self._progress)
        self.shipping.read_the_rest(self._memory)
        self._vectors.check_ties()

    def check_slots(self) -> None:
        """Raise DamagedFiles unless what was read of the head is what was once written: nothing is folded onto else."""
        spoilt = [path for reader in self._kept.values() for path in reader.unlike(self._head.sums)]
        if spoilt:
            names = ["/".join(Path(path).parts[-3:]) for path in spoilt]
            raise DamagedFiles(f"{', '.join(names)} is not as it was written: nothing was folded onto it", *names)

    def _readers(self) -> list[Reader]:
        published = [self._published] if self._published else []
        return [self._base, self.candidate, *self._kept.values(), *published]

    def finish(self) -> FoldResult:
        """Close the files that were written, and add up."""
        share, out = MORE[self._act] * self._share, self._out
        norms = sqrt(self._task_square), share, sqrt(out.readout_square) if out else 0.0
        if out is not None:
            out.finish()
        return FoldResult(
            digest=self.shipping.digest_with(self._vectors.hexdigest()),
            weights_digest=self._vectors.hexdigest(),
            totals=self._head.totals.with_checkpoint(*norms),
            reports=self._reports,
            readouts=out.readouts if out else {},
            slots=out.slots if out else [],
            files=out.files if out else [],
            bytes_read=self.shipping.nbytes
            + self._head.prepared.nbytes
            + sum(reader.nbytes for reader in self._readers()),
            bytes_written=out.nbytes if out else 0,
            sketch=self._sketch.tobytes(),
        )


@contextmanager
def _ours(files: Iterable[str]) -> Iterator[None]:
    """Raise DamagedFiles where slots of the head cannot be read: they are no checkpoint's."""
    try:
        yield
    except Unavailable as error:
        within = ("/".join(Path(file).parts[-3:]) for file in files)
        raise DamagedFiles(f"{error}; it is a file of the head", *within) from error


@dataclass
class _Gathered:
    """The sums over one weight's blocks; squared Frobenius norms, float64."""

    task: float = 0.0
    removed: float = 0.0
    split_rank: float = 0.0
    margin: float = 0.0
    dot: float = 0.0
    zero: bool = True  # the read-out, so far

    def report(self, base_norm: float) -> WeightReport:
        survived = 1.0 - self.removed / self.task if self.task else 1.0
        return WeightReport(sqrt(self.task), base_norm, self.split_rank, survived, self.dot, self.margin)
