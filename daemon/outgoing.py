"""Outgoing: what a pass over all weights writes into a draft: the slots, and the read-outs that are no slot."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from torch import Tensor

from ..plugins.rules._sums import square
from ..plugins.rules.interface import Slots, Statistic
from ..state.errors import Misconfigured
from ..state.records import FileDigest, Readout, Weight
from ..state.store import Draft
from ..state.writing import Planned, Writer
from .base import Base
from .method import Method

SlotKey = tuple[str, str]  # (statistic, slot), as the manifest names them


class Outgoing:
    """The open files of one draft."""

    def __init__(self, base: Base, method: Method, draft: Draft, stack: ExitStack) -> None:
        self.readouts: dict[str, Readout] = {}
        self.readout_square = 0.0  # squared Frobenius norm of all read-outs so far, float64
        self.slots: list[dict[str, Any]] = []  # manifest entries, once all is written: file, statistic, slot
        self.files: list[FileDigest] = []
        self._draft, self._stack, self._base, self._method = draft, stack, base, method
        self._spilled: list[Writer] = []
        plans = enumerate(plan_slots(base, method).items(), start=1)
        self._slots = {key: stack.enter_context(self._slot_writer(i, key, planned)) for i, (key, planned) in plans}

    def _slot_writer(self, number: int, key: SlotKey, planned: list[Planned]) -> Writer:
        metadata = {"format": "pt", "statistic": key[0], "slot": key[1]}
        return Writer(self._draft.slots, f"slots-{number:05d}", planned, metadata, holes=True)

    def write(self, w: Weight, statistic: Statistic, slots: Slots) -> None:
        """Write the next block of one weight's slots."""
        for slot, tensor in slots.items():
            self._slots[key_of(statistic, slot)].write(w.name, tensor)

    def read_out(self, w: Weight, merged: Tensor, slots: Mapping[Statistic, Slots]) -> bool:
        """Take the next block of what is read out of one weight, and return whether it is zero everywhere.

        Unless it is one of the slots itself it is spilled, for the scale is not known yet.
        """
        whole = square(merged)
        self.readout_square += self._method.lines.at(self._base.depths[w.name]) ** 2 * whole
        zero = not whole and not merged.any()  # the squares of tiny numbers are zero too
        places = (key_of(s, slot) for s, found in slots.items() for slot, tensor in found.items() if tensor is merged)
        key = next(places, None)
        if key is not None:
            self.readouts[w.name] = Readout(self._slots[key].layout, w.name)
            return zero
        if w.name not in self.readouts:
            planned = [Planned(w.name, "F32", w.shape)]
            spill = Writer(self._draft.folder, f"spill-{len(self._spilled):05d}", planned, {"format": "pt"})
            self._spilled.append(self._stack.enter_context(spill))
            self.readouts[w.name] = Readout(spill.layout, w.name)
        self._spilled[-1].write(w.name, merged)
        return zero

    def end(self, w: Weight, zero: bool) -> None:
        """End one weight; `zero`: its read-out was zero everywhere."""
        if self._spilled and w.name in self._spilled[-1].order:
            self._spilled[-1].finish()  # one file at a time is open
        if zero:
            self.readouts[w.name] = replace(self.readouts[w.name], zero=True)

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


def plan_slots(base: Base, method: Method) -> dict[SlotKey, list[Planned]]:
    """Return every slot that a method keeps for this base model: one file for each (statistic, slot)."""
    plan: dict[SlotKey, list[Planned]] = {}
    for key, tensor in _slot_plans(base, method):
        plan.setdefault(key, []).append(tensor)
    return plan


def _slot_plans(base: Base, method: Method) -> Iterator[tuple[SlotKey, Planned]]:
    called: dict[str, Statistic] = {}
    for w in base.weights:
        for statistic in method.keeps(w):
            if called.setdefault(repr(statistic), statistic) != statistic:
                raise Misconfigured(f"two rules keep different statistics called {statistic!r}", "use one of the rules")
            for slot, spec in statistic.slots(w).items():
                yield key_of(statistic, slot), Planned(w.name, spec.dtype, spec.shape)


def key_of(statistic: Statistic, slot: str) -> SlotKey:
    """Return how the manifest names a slot: a frozen dataclass prints its fields, so equal ones are one."""
    return repr(statistic), slot
