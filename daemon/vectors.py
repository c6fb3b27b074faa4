"""The merged task vector of a version, weight by weight: scale x read-out of its slots, or published minus base."""

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Protocol

import torch
from torch import Tensor

from ..state.headers import layout_of
from ..state.reading import Reader
from ..state.records import Counts, Layout, Version, Weight
from ..state.store import Store, folder_name
from .base import Base, Rows, float32_bytes, row_blocks
from .exporting import File, check
from .method import Method, method_in
from .progress import Progress
from .slots import KeptSlots, SlotKey


class MergedVector(Protocol):
    """The merged task vector of a version."""

    def read(self, w: Weight, rows: Rows) -> Tensor:
        """Return one weight's, or a block of its rows."""
        ...

    def blocks(self, w: Weight, memory: int) -> list[Rows]:
        """Return the blocks of rows that it may be read by."""
        ...


def open_vector(version: Version, base: Base, store: Store, progress: Progress, stack: ExitStack) -> MergedVector:
    """Return the version's task vector, once the files that it is read from were compared with the manifest."""
    manifest = store.manifest(version.number)
    if version.slots_kept and method_in(manifest).name == version.rule:
        files = [File(entry["name"], entry["size"], entry["blake3"]) for entry in manifest["slots"]]
        check(store.versions / folder_name(version.number), files, progress)
        return FromSlots(method_in(manifest), base, store.slot_layouts(version.number), version, stack)
    files = [File(**entry) for entry in manifest["model"] if entry["name"].endswith(".safetensors")]
    check(store.model(version.number), files, progress)
    layout = layout_of([store.model(version.number) / file.name for file in files])
    return FromModel(base.layout, layout, stack)


class FromSlots:
    """Scale x read-out, from a version's slots."""

    def __init__(
        self, method: Method, base: Base, slots: Mapping[SlotKey, Layout], version: Version, stack: ExitStack
    ) -> None:
        self._method, self._scale, self._depths = method, version.scale, base.depths
        self._counts = Counts(version.totals.folded, version.totals.shares)
        self._slots = KeptSlots(slots, stack, hashed=False)

    def read(self, w: Weight, rows: Rows) -> Tensor:
        """Return one weight's, or a block of its rows."""
        kept = {statistic: self._slots.read(w, statistic, rows) for statistic in self._method.keeps(w)}
        return self._method.merged(kept, w, self._counts) * (self._scale * self._method.lines.at(self._depths[w.name]))

    def blocks(self, w: Weight, memory: int) -> list[Rows]:
        """Return blocks of rows where the rule can read them, else the whole."""
        return row_blocks(w.shape, float32_bytes(w.shape), memory) if self._method.rowwise(w) else [None]


class FromModel:
    """Published minus base, where the slots are not kept."""

    def __init__(self, base: Layout, published: Layout, stack: ExitStack) -> None:
        self._base, self._published = (stack.enter_context(Reader(layout)) for layout in (base, published))

    def read(self, w: Weight, rows: Rows) -> Tensor:
        """Return one weight's, or a block of its rows."""
        theta, theta0 = self._published.read(w.name, rows), self._base.read(w.name, rows)
        wide = torch.float64 if torch.float64 in (theta.dtype, theta0.dtype) else torch.float32
        return theta.to(wide) - theta0.to(wide)

    def blocks(self, w: Weight, memory: int) -> list[Rows]:
        """Return blocks of rows."""
        return row_blocks(w.shape, float32_bytes(w.shape), memory)
