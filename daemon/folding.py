"""Folding: base, candidate and head stream by, weight by weight; each task vector enters the statistics and is read out.

Large weights go by in blocks of rows where statistic and rule allow it. Nothing here knows the history or the threads.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from math import sqrt
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..plugins.formats.interface import Candidate, Whole
from ..plugins.rules.interface import NOTHING, LowRank, Rule, Slots, Statistic, Update
from ..state.errors import Busy, Refused
from ..state.reading import TORCH_DTYPE, ContentDigest, Reader
from ..state.records import Counts, FileDigest, Layout, Readout, Reason, TensorInfo, Totals, Weight, WeightReport
from ..state.store import Draft
from ..state.writing import Planned, Writer
from .base import Base, float32_bytes, read_contents, row_blocks, square
from .progress import Progress

SlotKey = tuple[str, str]  # (statistic, slot), as the manifest names them


@dataclass(frozen=True)
class Head:
    """What a fold starts from: the totals and the slots of its parent; nothing before the first fold."""

    totals: Totals = field(default_factory=Totals)
    slots: Mapping[SlotKey, Layout] = field(default_factory=dict)


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


def fold(
    base: Base, candidate: Candidate, head: Head, rule: Rule, draft: Draft, memory: int, progress: Progress
) -> FoldResult:
    """Fold one candidate onto the head's slots, into the draft.

    `memory` bounds the working buffers of blocks, in bytes; a matrix that a rule needs whole is held whole.
    Raises Busy if the candidate changed or shrank meanwhile, Refused if tied weights differ, Abandoned on request.
    """
    with ExitStack() as stack:
        trip = _Trip(base, candidate, head, rule, draft, memory, progress, stack)
        if read_contents(Path(candidate.place)) != candidate.contents or not trip.candidate.opened_as(candidate.stamps):
            raise Busy(f"{candidate.name} was changed before it was folded")
        progress.begin("folding", len(base.weights), base.layout.nbytes)
        for weight in base.weights:
            trip.fold_weight(weight)
            progress.next_weight()
        trip.read_the_rest()
        if not trip.candidate.same_as_before():
            raise Busy(f"{candidate.name} was changed while it was folded")
        return trip.finish()


def content_digest(candidate: Candidate, memory: int, progress: Progress) -> str:
    """Return the digest of a candidate's content by reading all of it, without folding.

    Raises Busy if it changed or shrank meanwhile, Abandoned on request.
    """
    layout = candidate.contents.layout
    progress.begin("reading", len(layout.tensors), layout.nbytes)
    content = ContentDigest(candidate.contents.formulas)
    with Reader(layout) as reader:
        for info in layout.tensors.values():
            _gather(content, reader, info, memory, progress)
            progress.advance(info.nbytes)
            progress.next_weight()
        if not (reader.opened_as(candidate.stamps) and reader.same_as_before()):
            raise Busy(f"{candidate.name} was changed while it was read")
    return content.hexdigest()


def _gather(content: ContentDigest, reader: Reader, info: TensorInfo, memory: int, progress: Progress) -> None:
    """Read for the digest alone what it has not seen of one tensor."""
    for piece in reader.pieces(info.name, memory, content.begin(info)):
        content.add(info, piece)
        progress.advance(0)  # may end it


class _Trip:
    """One pass over all weights: the open files, and what is gathered on the way."""

    def __init__(
        self,
        base: Base,
        candidate: Candidate,
        head: Head,
        rule: Rule,
        draft: Draft,
        memory: int,
        progress: Progress,
        stack: ExitStack,
    ) -> None:
        self._model, self._head, self._rule, self._draft = base, head, rule, draft
        self._memory, self._progress, self._stack = memory, progress, stack
        self._newcomer = candidate
        self._base = stack.enter_context(Reader(base.layout))
        self.candidate = stack.enter_context(Reader(candidate.contents.layout))
        self._kept = {key: stack.enter_context(Reader(layout)) for key, layout in head.slots.items()}
        self._slots = {
            key: stack.enter_context(self._slot_writer(i, key, planned))
            for i, (key, planned) in enumerate(plan_slots(base, rule).items(), start=1)
        }
        self._content = ContentDigest(candidate.contents.formulas)
        self._counts = Counts(head.totals.folded + 1, head.totals.shares + 1.0)
        self._reports: dict[str, WeightReport] = {}
        self._readouts: dict[str, Readout] = {}
        self._task_square = self._readout_square = 0.0
        self._spilled: list[Writer] = []

    def _slot_writer(self, number: int, key: SlotKey, planned: list[Planned]) -> Writer:
        metadata = {"format": "pt", "statistic": key[0], "slot": key[1]}
        return Writer(self._draft.slots, f"slots-{number:05d}", planned, metadata)

    # ------------------------------------------------------------------------------------------------- one weight

    def fold_weight(self, w: Weight) -> None:
        """Fold one weight, block by block, and read it out at once."""
        statistics = self._rule.keeps(w)
        gathered = _Gathered()
        for rows, delta in self._task_vectors(w, statistics):
            gathered.task += delta.norm() ** 2 if isinstance(delta, LowRank) else square(delta)
            update = Update(delta)
            after = {statistic: self._fold_block(w, statistic, rows, update, gathered) for statistic in statistics}
            self._read_out(w, rows, after)
            whole = self._model.layout.tensors[w.name].nbytes
            self._progress.advance(whole * (rows[1] - rows[0]) // w.shape[0] if rows else whole)
        if self._spilled and w.name in self._spilled[-1].order:
            self._spilled[-1].finish()  # one file at a time is open
        self._task_square += gathered.task
        self._reports[w.name] = gathered.report(self._model.norms[w.name])

    def _task_vectors(
        self, w: Weight, statistics: tuple[Statistic, ...]
    ) -> Iterator[tuple[tuple[int, int] | None, Tensor | LowRank]]:
        """Yield the task vector block by block, float32, or float64 where a slot is; new values stream by."""
        by_rows = self._rule.rowwise(w) and all(statistic.rowwise(w) for statistic in statistics)
        blocks = row_blocks(w.shape, float32_bytes(w.shape), self._memory) if by_rows else [None]
        wide = any(spec.dtype == "F64" for s in statistics for spec in s.slots(w).values())
        part = self._newcomer.parts.get(w.name)
        if isinstance(part, Whole):
            return ((rows, self._difference(w, part, rows, wide)) for rows in blocks)
        if part is not None:
            delta = part.task_vector(self._read_whole, lambda: self._base.read(w.name))
        else:
            delta = LowRank.zero(w.shape) if len(w.shape) > 1 else torch.zeros(w.shape)
        delta = delta.to(torch.float64 if wide else torch.float32)
        return ((rows, _rows_of(delta, rows)) for rows in blocks)

    def _difference(self, w: Weight, part: Whole, rows: tuple[int, int] | None, wide: bool) -> Tensor:
        """Return new values minus the base's for one block; zero below the rows that count."""
        theta0 = self._base.read(w.name, rows)
        first, last = rows or (0, w.shape[0] if w.shape else 1)
        shared = last if part.rows is None else max(first, min(last, part.rows))
        theta = self.candidate.read(part.tensor, (first, shared) if part.rows is not None else rows)
        self._content.add(self._newcomer.contents.layout.tensors[part.tensor], theta)
        dtype = torch.float64 if wide or torch.float64 in (theta0.dtype, theta.dtype) else torch.float32
        delta = theta0.to(dtype).neg_()
        if shared < last:
            delta[shared - first :] = 0
            delta[: shared - first] += theta.to(dtype)
        else:
            delta += theta.to(dtype)
        return delta if wide else delta.float()

    def _read_whole(self, name: str) -> Tensor:
        tensor = self.candidate.read(name)
        self._content.add(self._newcomer.contents.layout.tensors[name], tensor)
        return tensor

    def _fold_block(
        self, w: Weight, statistic: Statistic, rows: tuple[int, int] | None, update: Update, gathered: "_Gathered"
    ) -> Slots:
        kept = {slot: self._kept_block(w, statistic, slot, rows) for slot in statistic.slots(w)}
        folded = statistic.fold(kept, update, w, self._head.totals.folded, NOTHING)
        for slot, tensor in folded.slots.items():
            self._slots[key_of(statistic, slot)].write(w.name, tensor)
        gathered.split_rank = max(gathered.split_rank, folded.split_rank)
        gathered.removed += folded.removed
        return folded.slots

    def _kept_block(self, w: Weight, statistic: Statistic, slot: str, rows: tuple[int, int] | None) -> Tensor:
        """Return the head's slot, or zeros before the first fold."""
        reader = self._kept.get(key_of(statistic, slot))
        if reader is not None:
            return reader.read(w.name, rows)
        spec = statistic.slots(w)[slot]
        shape = (rows[1] - rows[0], *spec.shape[1:]) if rows is not None else spec.shape
        return torch.zeros(shape, dtype=TORCH_DTYPE[spec.dtype])

    def _read_out(self, w: Weight, rows: tuple[int, int] | None, after: Mapping[Statistic, Slots]) -> None:
        """Read the merged task vector; unless it is itself a slot it is spilled, for the scale is not known yet."""
        merged = self._rule.merged(after, w, self._counts)
        self._readout_square += square(merged)
        places = (key_of(s, slot) for s, slots in after.items() for slot, tensor in slots.items() if tensor is merged)
        key = next(places, None)
        if key is not None:
            self._readouts[w.name] = Readout(self._slots[key].layout, w.name)
            return
        if w.name not in self._readouts:
            planned = [Planned(w.name, "F32", w.shape)]
            spill = Writer(self._draft.folder, f"spill-{len(self._spilled):05d}", planned, {"format": "pt"})
            self._spilled.append(self._stack.enter_context(spill))
            self._readouts[w.name] = Readout(spill.layout, w.name)
        self._spilled[-1].write(w.name, merged)

    # --------------------------------------------------------------------------------------------------- all weights

    def read_the_rest(self) -> None:
        """Read what is not folded, for the digest, and hold tied weights against each other."""
        for info in self._newcomer.contents.layout.tensors.values():
            _gather(self._content, self.candidate, info, self._memory, self._progress)
        for second, first in self._newcomer.aliases.items():
            if self._content.of(second) != self._content.of(first):
                found = f"{second} differs from {first}, which the base model ties"
                raise Refused(Reason("untied", found, "one weight under two names", "save the checkpoint tied"))

    def finish(self) -> FoldResult:
        """Close the files that were written, and add up."""
        slots, files = [], []
        for key, writer in self._slots.items():
            writer.finish()
            for file in writer.files:
                files.append(file)
                slots.append({**vars(file), "statistic": key[0], "slot": key[1]})
        totals = self._head.totals.with_checkpoint(sqrt(self._task_square), 1.0, sqrt(self._readout_square))
        return FoldResult(
            digest=self._content.hexdigest(),
            totals=totals,
            reports=self._reports,
            readouts=self._readouts,
            slots=slots,
            files=files,
            bytes_read=sum(reader.nbytes for reader in (self._base, self.candidate, *self._kept.values())),
            bytes_written=sum(writer.nbytes for writer in (*self._slots.values(), *self._spilled)),
        )


@dataclass
class _Gathered:
    """The sums over one weight's blocks; squared Frobenius norms, float64."""

    task: float = 0.0
    removed: float = 0.0
    split_rank: float = 0.0

    def report(self, base_norm: float) -> WeightReport:
        survived = 1.0 - self.removed / self.task if self.task else 1.0
        return WeightReport(sqrt(self.task), base_norm, self.split_rank, survived)


def _rows_of(delta: Tensor | LowRank, rows: tuple[int, int] | None) -> Tensor | LowRank:
    if rows is None:
        return delta
    return delta.rows(*rows) if isinstance(delta, LowRank) else delta[rows[0] : rows[1]]


def plan_slots(base: Base, rule: Rule) -> dict[SlotKey, list[Planned]]:
    """Return every slot that a rule keeps for this base model: one file for each (statistic, slot)."""
    plan: dict[SlotKey, list[Planned]] = {}
    for key, tensor in _slot_plans(base, rule):
        plan.setdefault(key, []).append(tensor)
    return plan


def _slot_plans(base: Base, rule: Rule) -> Iterator[tuple[SlotKey, Planned]]:
    for w in base.weights:
        for statistic in rule.keeps(w):
            for slot, spec in statistic.slots(w).items():
                yield key_of(statistic, slot), Planned(w.name, spec.dtype, spec.shape)


def key_of(statistic: Statistic, slot: str) -> SlotKey:
    """Return how the manifest names a slot: a frozen dataclass prints its fields, so equal ones are one."""
    return repr(statistic), slot
