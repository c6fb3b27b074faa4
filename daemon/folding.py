"""Folding: base, candidate and head stream by, weight by weight; each task vector enters the statistics and is read out.

Large weights go by in blocks of rows where statistic and rule allow it. Nothing here knows the history or the threads.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from math import sqrt
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ..plugins.formats.interface import Candidate, Contents
from ..plugins.rules._sums import inner, square
from ..plugins.rules.interface import NOTHING, Folded, LowRank, Rule, Slots, Statistic, Sum, Update
from ..state.errors import Busy, DamagedFiles, Unavailable
from ..state.reading import TORCH_DTYPE, Reader
from ..state.records import Counts, FileDigest, Layout, Readout, Totals, Weight, WeightReport
from ..state.store import Draft
from ..state.writing import Planned, Writer
from .base import Base, float32_bytes, read_contents, row_blocks
from .forming import Forming, Rows
from .progress import Progress
from .sketch import Projection, Sketch

SlotKey = tuple[str, str]  # (statistic, slot), as the manifest names them
Act = Literal["fold", "remove", "keep"]
MORE: Mapping[Act, int] = {"fold": 1, "remove": -1, "keep": 0}  # checkpoints that are in the model after it
NOBODY = Candidate("", "nothing", Contents(Layout({}, ()), {}), {}, ())  # has a task vector of zero everywhere


@dataclass(frozen=True)
class Head:
    """What a fold starts from: the totals and the slots of its parent; nothing before the first fold."""

    totals: Totals = field(default_factory=Totals)
    slots: Mapping[SlotKey, Layout] = field(default_factory=dict)
    sums: Mapping[str, str] = field(default_factory=dict)  # sha256 of each file of the slots, by its path


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


def fold(
    base: Base,
    candidate: Candidate,
    head: Head,
    rule: Rule,
    draft: Draft | None,
    memory: int,
    progress: Progress,
    act: Act = "fold",
) -> FoldResult:
    """Fold one candidate onto the head's slots, into the draft; without one nothing is written, only measured.

    `memory` bounds the working buffers of blocks, in bytes; a matrix that a rule needs whole is held whole.
    `act` may be "remove", where all statistics are sums: then its terms are taken out again.
    Raises Busy if the candidate changed or shrank meanwhile, Refused if tied weights differ, DamagedFiles if the head's
    slots are not as they were written, Abandoned on request.
    """
    with ExitStack() as stack:
        trip = _Trip(base, candidate, head, rule, draft, memory, progress, stack, act)
        if read_contents(Path(candidate.place)) != candidate.contents or not trip.candidate.opened_as(candidate.stamps):
            raise Busy(f"{candidate.name} was changed before it was folded")
        trip.all_weights("removing" if act == "remove" else "folding")
        trip.read_the_rest()
        if not trip.candidate.same_as_before():
            raise Busy(f"{candidate.name} was changed while it was folded")
        trip.check_slots()
        return trip.finish()


def keep(base: Base, head: Head, rule: Rule, draft: Draft, memory: int, progress: Progress) -> FoldResult:
    """Write the head's slots, or zeros where it has none, into the draft as they are, and read them out.

    Raises Abandoned on request.
    """
    with ExitStack() as stack:
        trip = _Trip(base, NOBODY, head, rule, draft, memory, progress, stack, "keep")
        trip.all_weights("copying")
        trip.check_slots()
        return trip.finish()


def removable(base: Base, rule: Rule) -> bool:
    """Whether a checkpoint can be taken out by subtraction: whether every statistic that is kept is a sum."""
    return all(isinstance(statistic, Sum) for w in base.weights for statistic in rule.keeps(w))


class _Trip:
    """One pass over all weights: the open files, and what is gathered on the way."""

    def __init__(
        self,
        base: Base,
        candidate: Candidate,
        head: Head,
        rule: Rule,
        draft: Draft | None,
        memory: int,
        progress: Progress,
        stack: ExitStack,
        act: Act,
    ) -> None:
        self._model, self._head, self._rule, self._draft, self._act = base, head, rule, draft, act
        self._memory, self._progress, self._stack = memory, progress, stack
        self._base = stack.enter_context(Reader(base.layout))
        self.candidate = stack.enter_context(Reader(candidate.contents.layout))
        self._kept = {
            key: stack.enter_context(Reader(layout, hashed=bool(head.sums))) for key, layout in head.slots.items()
        }
        plans = enumerate(plan_slots(base, rule).items() if draft else (), start=1)
        self._slots = {key: stack.enter_context(self._slot_writer(i, key, planned)) for i, (key, planned) in plans}
        self._vectors, self._sketch = Forming(candidate, self._base, self.candidate), Sketch()
        self._counts = Counts(head.totals.folded + MORE[act], head.totals.shares + MORE[act])
        self._reports: dict[str, WeightReport] = {}
        self._readouts: dict[str, Readout] = {}
        self._task_square = self._readout_square = 0.0
        self._spilled: list[Writer] = []

    def _slot_writer(self, number: int, key: SlotKey, planned: list[Planned]) -> Writer:
        assert self._draft is not None
        metadata = {"format": "pt", "statistic": key[0], "slot": key[1]}
        return Writer(self._draft.slots, f"slots-{number:05d}", planned, metadata, holes=True)

    def all_weights(self, doing: str) -> None:
        """Take every weight, one after the other."""
        self._progress.begin(doing, len(self._model.weights), self._model.layout.nbytes)
        for weight in self._model.weights:
            self.fold_weight(weight)
            self._progress.next_weight()

    # ------------------------------------------------------------------------------------------------- one weight

    def fold_weight(self, w: Weight) -> None:
        """Fold one weight, block by block, and read it out at once."""
        statistics = self._rule.keeps(w)
        gathered, projection = _Gathered(), Projection(w.name, w.shape)
        wide = any(spec.dtype == "F64" for s in statistics for spec in s.slots(w).values())
        dtype = torch.float64 if wide else torch.float32
        for rows, delta in self._vectors.of(w, self._blocks(w, statistics), dtype):
            gathered.task += delta.norm() ** 2 if isinstance(delta, LowRank) else square(delta)
            self._sketch.add(projection, delta, rows)
            before = {statistic: self._kept_blocks(w, statistic, rows) for statistic in statistics}
            gathered.dot += self._dot(w, before, delta)
            if self._draft is not None:
                update = Update(delta)
                after = {s: self._fold_block(w, s, kept, update, gathered) for s, kept in before.items()}
                gathered.zero &= self._read_out(w, rows, after)
            whole = self._model.layout.tensors[w.name].nbytes
            self._progress.advance(whole * (rows[1] - rows[0]) // w.shape[0] if rows else whole)
        if self._spilled and w.name in self._spilled[-1].order:
            self._spilled[-1].finish()  # one file at a time is open
        if w.name in self._readouts and gathered.zero:
            self._readouts[w.name] = replace(self._readouts[w.name], zero=True)
        self._task_square += gathered.task
        self._reports[w.name] = gathered.report(self._model.norms[w.name])

    def _blocks(self, w: Weight, statistics: tuple[Statistic, ...]) -> list[Rows]:
        by_rows = self._rule.rowwise(w) and all(statistic.rowwise(w) for statistic in statistics)
        return row_blocks(w.shape, float32_bytes(w.shape), self._memory) if by_rows else [None]

    def _dot(self, w: Weight, before: Mapping[Statistic, Slots], delta: Tensor | LowRank) -> float:
        """Return the task vector's inner product with the head's read-out, in one block."""
        totals = self._head.totals
        if not totals.folded or (isinstance(delta, LowRank) and not delta.rank):
            return 0.0
        merged = self._rule.merged(before, w, Counts(totals.folded, totals.shares))
        return delta.dot(merged) if isinstance(delta, LowRank) else inner(merged, delta)

    def _fold_block(self, w: Weight, statistic: Statistic, kept: Slots, update: Update, gathered: "_Gathered") -> Slots:
        folded = self._entered(w, statistic, kept, update)
        for slot, tensor in folded.slots.items():
            self._slots[key_of(statistic, slot)].write(w.name, tensor)
        gathered.split_rank = max(gathered.split_rank, folded.split_rank)
        gathered.removed += folded.removed
        return folded.slots

    def _entered(self, w: Weight, statistic: Statistic, kept: Slots, update: Update) -> Folded:
        if self._act == "fold":
            return statistic.fold(kept, update, w, self._head.totals.folded, NOTHING)
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

    def _read_out(self, w: Weight, rows: Rows, after: Mapping[Statistic, Slots]) -> bool:
        """Read the merged task vector, and return whether it is zero everywhere.

        Unless it is itself a slot it is spilled, for the scale is not known yet.
        """
        merged = self._rule.merged(after, w, self._counts)
        whole = square(merged)
        self._readout_square += whole
        zero = not whole and not merged.any()  # the squares of tiny numbers are zero too
        places = (key_of(s, slot) for s, slots in after.items() for slot, tensor in slots.items() if tensor is merged)
        key = next(places, None)
        if key is not None:
            self._readouts[w.name] = Readout(self._slots[key].layout, w.name)
            return zero
        if w.name not in self._readouts:
            planned = [Planned(w.name, "F32", w.shape)]
            assert self._draft is not None
            spill = Writer(self._draft.folder, f"spill-{len(self._spilled):05d}", planned, {"format": "pt"})
            self._spilled.append(self._stack.enter_context(spill))
            self._readouts[w.name] = Readout(spill.layout, w.name)
        self._spilled[-1].write(w.name, merged)
        return zero

    # --------------------------------------------------------------------------------------------------- all weights

    def read_the_rest(self) -> None:
        """Read what is not folded, for the digest, and hold tied weights against each other."""
        self._vectors.read_the_rest(self._memory, self._progress)
        self._vectors.check_ties()

    def check_slots(self) -> None:
        """Raise DamagedFiles unless what was read of the head is what was once written: nothing is folded onto else."""
        spoilt = [path for reader in self._kept.values() for path in reader.unlike(self._head.sums)]
        if spoilt:
            names = ["/".join(Path(path).parts[-3:]) for path in spoilt]
            raise DamagedFiles(f"{', '.join(names)} is not as it was written: nothing was folded onto it", *names)

    def finish(self) -> FoldResult:
        """Close the files that were written, and add up."""
        slots, files = [], []
        for key, writer in self._slots.items():
            writer.finish()
            for file in writer.files:
                files.append(file)
                slots.append({**vars(file), "statistic": key[0], "slot": key[1]})
        share = float(MORE[self._act])
        return FoldResult(
            digest=self._vectors.hexdigest(),
            totals=self._head.totals.with_checkpoint(sqrt(self._task_square), share, sqrt(self._readout_square)),
            reports=self._reports,
            readouts=self._readouts,
            slots=slots,
            files=files,
            bytes_read=sum(reader.nbytes for reader in (self._base, self.candidate, *self._kept.values())),
            bytes_written=sum(writer.nbytes for writer in (*self._slots.values(), *self._spilled)),
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
    dot: float = 0.0
    zero: bool = True  # the read-out, so far

    def report(self, base_norm: float) -> WeightReport:
        survived = 1.0 - self.removed / self.task if self.task else 1.0
        return WeightReport(sqrt(self.task), base_norm, self.split_rank, survived, self.dot)


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
