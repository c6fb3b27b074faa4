"""Outgoing: what a pass over all weights writes into a draft: the slots, and the read-outs that are no slot."""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from ..plugins.rules._sums import square
from ..plugins.rules.interface import LowRank, Statistic
from ..state.records import FileDigest, Readout, Weight
from ..state.store import Draft
from ..state.writing import Planned, Writer
from .base import Base
from .method import Method
from .slots import LEFT, RIGHT, SlotKey, key_of, plan_slots

Made = Mapping[Statistic, Mapping[str, Tensor | LowRank]]  # the slots of one block, of each statistic


@dataclass(frozen=True)
class Merged:
    """The read-out of one block of a weight."""

    readout: Tensor | LowRank
    square: float  # squared Frobenius norm, float64
    zero: bool  # everywhere

    @staticmethod
    def of(readout: Tensor | LowRank) -> "Merged":
        """Measure a read-out."""
        if isinstance(readout, LowRank):
            found = readout.norm() ** 2
            return Merged(readout, found, not found and not (readout.B.any() and readout.A.any()))
        found = square(readout)
        return Merged(readout, found, not found and not readout.any())  # the squares of tiny numbers are zero too


class Outgoing:
    """The open files of one draft."""

    def __init__(
        self, base: Base, method: Method, draft: Draft, stack: ExitStack, ranks: Mapping[str, int] | None = None
    ) -> None:
        self.readouts: dict[str, Readout] = {}
        self.readout_square = 0.0  # squared Frobenius norm of all read-outs so far, float64
        self.slots: list[dict[str, Any]] = []  # manifest entries, once all is written: file, statistic, slot
        self.files: list[FileDigest] = []
        self._draft, self._stack, self._base, self._method = draft, stack, base, method
        self._spilled: list[Writer] = []
        plans = enumerate(plan_slots(base, method, ranks or {}).items(), start=1)
        self._slots = {key: stack.enter_context(self._slot_writer(i, key, planned)) for i, (key, planned) in plans}

    def _slot_writer(self, number: int, key: SlotKey, planned: list[Planned]) -> Writer:
        metadata = {"format": "pt", "statistic": key[0], "slot": key[1]}
        return Writer(self._draft.slots, f"slots-{number:05d}", planned, metadata, holes=True)

    def take(self, w: Weight, slots: Made, merged: Merged) -> None:
        """Write the next block of one weight's slots, and of what is read out of it.

        Unless the read-out is one of the slots itself it is spilled, for the scale is not known yet.
        """
        for statistic, tensors in slots.items():
            for slot, tensor in tensors.items():
                self._write(self._slots[key_of(statistic, slot)], w, tensor)
        self.readout_square += self._method.lines.at(self._base.depths[w.name]) ** 2 * merged.square
        made = ((key_of(s, slot), tensor) for s, tensors in slots.items() for slot, tensor in tensors.items())
        key = next((key for key, tensor in made if tensor is merged.readout), None)
        zero = merged.zero and (w.name not in self.readouts or self.readouts[w.name].zero)
        if key is not None:
            self.readouts[w.name] = Readout(self._slots[key].layout, w.name, zero)
            return
        if w.name not in self.readouts:
            self._spill(w)
        self.readouts[w.name] = replace(self.readouts[w.name], zero=zero)
        assert isinstance(merged.readout, Tensor), "factors are read out where they are kept so"
        self._spilled[-1].write(w.name, merged.readout)

    def _write(self, writer: Writer, w: Weight, tensor: Tensor | LowRank) -> None:
        if isinstance(tensor, LowRank):
            writer.write(w.name + LEFT, tensor.B)
            writer.write(w.name + RIGHT, tensor.A)
        else:
            writer.write(w.name, tensor)

    def _spill(self, w: Weight) -> None:
        planned = [Planned(w.name, "F32", w.shape)]
        spill = Writer(self._draft.folder, f"spill-{len(self._spilled):05d}", planned, {"format": "pt"})
        self._spilled.append(self._stack.enter_context(spill))
        self.readouts[w.name] = Readout(spill.layout, w.name)

    def end(self, w: Weight) -> None:
        """End one weight: one spilled file at a time is open."""
        if self._spilled and w.name in self._spilled[-1].order:
            self._spilled[-1].finish()

    def finish(self) -> None:
        """Close the files of the slots."""
        for key, writer in self._slots.items():
            writer.finish()
            for file in writer.files:
                self.files.append(file)
                self.slots.append({**vars(file), "statistic": key[0], "slot": key[1]})

    @property
    def nbytes(self) -> int:
        """Bytes written so far."""
        return sum(writer.nbytes for writer in (*self._slots.values(), *self._spilled))
