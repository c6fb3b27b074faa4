"""Merging anew: all checkpoints stream by together, weight by weight; each weight is folded from nothing and read out once.

Memory is that of one weight for a fold rule; a batch rule holds one weight of every checkpoint.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from math import sqrt

import torch
from torch import Tensor

from ..plugins.formats.interface import Candidate
from ..plugins.rules._sums import square
from ..plugins.rules.batch_interface import BatchRule
from ..plugins.rules.interface import NOTHING, LowRank, Slots, Statistic, Update
from ..state.errors import Busy
from ..state.reading import Reader
from ..state.records import Counts, Totals, Weight, WeightReport
from ..state.store import Draft
from .base import Base, Rows, read_contents
from .blocks import blocks_of, threads_for
from .folding import FoldResult
from .forming import Forming
from .machine import Machine, with_threads
from .method import Method
from .outgoing import Merged, Outgoing
from .progress import Progress
from .shipped import Shipping
from .slots import zeros
from .stepping import Stepping
from .surveying import Surveyed, survey


@dataclass(frozen=True)
class Source:
    """One checkpoint that is merged, and what it counts."""

    candidate: Candidate
    share: float = 1.0


def remerge(
    base: Base,
    sources: Sequence[Source],
    method: Method,
    batch: BatchRule | None,
    draft: Draft,
    machine: Machine,
    progress: Progress,
) -> tuple[FoldResult, list[tuple[str, str]]]:
    """Merge checkpoints from nothing, in their order, into the draft; returns the digests of each one's content, and of its
    weights alone, too.

    What is kept is as if they had been folded one after the other. It is read out by the method's rule, or at once from
    all task vectors by a batch rule. Raises what `fold` raises.
    """
    with ExitStack() as stack:
        together = _Together(base, sources, method, batch, draft, machine, progress, stack)
        together.all_weights()
        return together.finish()


class _Open:
    """One checkpoint with its open files, and what was gathered of it."""

    def __init__(self, base: Base, theta0: Reader, source: Source, method: Method, stack: ExitStack) -> None:
        self.candidate, self.share = source.candidate, source.share
        self.reader = stack.enter_context(Reader(source.candidate.contents.layout, feed=source.candidate.feed))
        self.shipping = Shipping(source.candidate, stack)
        self._base, self._theta0, self._method = base, theta0, method
        self.vectors = self.again(hashed=True)
        self.surveyed = Surveyed()
        self.square = 0.0  # of the task vector's norm, float64
        contents = read_contents(self.candidate.here)
        opened = self.reader.opened_as(self.candidate.stamps) and self.shipping.opened_as_sighted()
        if contents != self.candidate.contents or not opened:
            raise Busy(f"{self.candidate.name} was changed before it was merged")

    def again(self, *, hashed: bool = False) -> Forming:
        """Begin to form its task vectors."""
        return Forming(self.candidate, self._theta0, self.reader, hashed=hashed)

    def update(self, w: Weight, rows: Rows, seed: int) -> tuple[Update, float]:
        """Return its news about one block of rows, or about a whole weight, and the squared norm of that."""
        statistics = self._method.keeps(w)
        wide = any(spec.dtype == "F64" for statistic in statistics for spec in statistic.slots(w).values())
        ((_, delta),) = self.vectors.of(w, [rows], torch.float64 if wide else torch.float32)
        extra = self.shipping.of(w, rows, self._method.needs((w,)))
        start = rows[0] * (w.size // w.shape[0]) if rows else 0
        update = Update(self.surveyed.scaled(delta), self.share, seed, start, extra, self.surveyed.whole)
        return update, delta.norm() ** 2 if isinstance(delta, LowRank) else square(delta)

    def survey(self, machine: Machine, progress: Progress) -> None:
        """Learn what the fold needs to know of all of it."""
        self.surveyed = survey(self._base, self.again, self._method, machine, progress)

    def digests(self, memory: int, progress: Progress) -> tuple[str, str]:
        """Read the rest, and return the digests of its content and of its weights alone."""
        self.vectors.read_the_rest(memory, progress)
        self.shipping.read_the_rest(memory)
        self.vectors.check_ties()
        if not (self.reader.same_as_before() and self.shipping.same_as_before()):
            raise Busy(f"{self.candidate.name} was changed while it was merged")
        weights = self.vectors.hexdigest()
        return self.shipping.digest_with(weights), weights


class _Together:
    """One pass over all weights of all checkpoints."""

    def __init__(
        self,
        base: Base,
        sources: Sequence[Source],
        method: Method,
        batch: BatchRule | None,
        draft: Draft,
        machine: Machine,
        progress: Progress,
        stack: ExitStack,
    ) -> None:
        self._model, self._method, self._batch, self._machine, self._progress = base, method, batch, machine, progress
        self._base = stack.enter_context(Reader(base.layout))
        among = [replace(source, candidate=source.candidate.among(len(sources))) for source in sources]
        self._sources = [_Open(base, self._base, source, method, stack) for source in among]
        self._out = Outgoing(base, method, draft, stack)
        self._reports: dict[str, WeightReport] = {}
        for source in self._sources:
            source.survey(machine, progress)

    def all_weights(self) -> None:
        """Take every weight, one after the other."""
        self._progress.begin("merging", len(self._model.weights), len(self._sources) * self._model.layout.nbytes)
        for w in self._model.weights:
            with with_threads(threads_for(w, self._method, self._machine.threads)):
                self._merge_weight(w)
            self._progress.next_weight()

    def _merge_weight(self, w: Weight) -> None:
        """Fold one weight of every checkpoint, block by block, and read it out."""
        seeded = any("seed" in statistic.needs for statistic in self._method.keeps(w))
        seeds = [source.vectors.seed(w) if seeded else 0 for source in self._sources]
        squares = [0.0 for _ in self._sources]
        for rows in blocks_of(w, self._method, self._machine.memory) if self._batch is None else [None]:
            slots, taus = self._folded(w, rows, seeds, squares)
            self._out.take(w, slots, Merged.of(self._merged(w, taus, slots)))
        self._out.end(w)
        for source, square_of_weight in zip(self._sources, squares, strict=True):
            source.square += square_of_weight
        each = sqrt(sum(squares) / len(squares))
        self._reports[w.name] = WeightReport(each, self._model.norms[w.name], 0.0, 1.0)

    def _folded(
        self, w: Weight, rows: Rows, seeds: Sequence[int], squares: list[float]
    ) -> tuple[dict[Statistic, Slots], list[Tensor]]:
        """Return the slots of one block, or of the whole weight, after all folds; and what a batch rule is to see.

        One task vector is held at a time, unless a batch rule is to see all. Their squares are added to `squares`.
        """
        slots: dict[Statistic, Slots] = {}
        for statistic in self._method.keeps(w):
            slots[statistic] = {name: zeros(spec, rows) for name, spec in statistic.slots(w).items()}
        taus, before = [], Counts(0, 0.0)
        for number, (source, seed) in enumerate(zip(self._sources, seeds, strict=True)):
            update, square_of_block = source.update(w, rows, seed)
            slots = {s: s.fold(kept, update, w, before, NOTHING).slots for s, kept in slots.items()}
            squares[number] += square_of_block
            taus += [update.delta.float()] if self._batch is not None else []
            before = Counts(before.folded + 1, before.shares + update.share)
            nbytes = self._model.layout.tensors[w.name].nbytes
            self._progress.advance(nbytes * (rows[1] - rows[0]) // w.shape[0] if rows else nbytes)
            del update  # before the next one is formed
        return slots, taus

    def _merged(self, w: Weight, taus: Sequence[Tensor], slots: Mapping[Statistic, Slots]) -> Tensor:
        """Return the read-out of one block, or of the whole weight."""
        shares = [source.share for source in self._sources]
        with Stepping(self._progress):
            if self._batch is None:
                return self._method.merged(slots, w, Counts(len(shares), sum(shares)))
            theta0 = self._base.read(w.name).float() if self._batch.needs_base else torch.empty(0)
            return self._batch.merge(taus, w, shares, theta0)

    def finish(self) -> tuple[FoldResult, list[tuple[str, str]]]:
        """Close the files, and add up."""
        digests = [source.digests(self._machine.memory, self._progress) for source in self._sources]
        self._out.finish()
        totals = Totals()
        for source in self._sources:
            totals = totals.with_checkpoint(sqrt(source.square), source.share, sqrt(self._out.readout_square))
        read = self._base.nbytes + sum(source.reader.nbytes + source.shipping.nbytes for source in self._sources)
        out = self._out
        result = FoldResult("", totals, self._reports, out.readouts, out.slots, out.files, read, out.nbytes, sketch=b"")
        return result, digests
