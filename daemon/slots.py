"""The slots of a model: which are kept whole and which as two factors, where they lie in a version's files, and their reading.

A slot of a matrix is a product of two factors for as long as adapters alone were folded and that takes at most half of its
bytes; then whole, for good. It is decided by shapes alone, so that the same checkpoints in the same order give the same bytes.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from ..plugins.rules.interface import Factored, LowRank, Slots, Statistic
from ..state.errors import DamagedFiles, Misconfigured, Unavailable
from ..state.reading import TORCH_DTYPE, Reader
from ..state.records import Counts, Layout, SlotSpec, Weight
from ..state.writing import Planned
from .base import Base, Rows
from .method import Method

SlotKey = tuple[str, str]  # (statistic, slot), as the manifest names them
TILE = 256  # rows of a product that are formed at once, wherever a block begins: its bytes depend on no blocks
LEFT, RIGHT = ":left", ":right"  # what the two factors of a weight's slot are called in a file, after the weight


def key_of(statistic: Statistic, slot: str) -> SlotKey:
    """Return how the manifest names a slot: a frozen dataclass prints its fields, so equal ones are one."""
    return repr(statistic), slot


def plan_slots(base: Base, method: Method, ranks: Mapping[str, int]) -> dict[SlotKey, list[Planned]]:
    """Return every slot that a method keeps for this base model: one file for each (statistic, slot).

    ranks: of the weights whose slot is kept as two factors, how many columns these have.
    """
    plan: dict[SlotKey, list[Planned]] = {}
    called: dict[str, Statistic] = {}
    for w in base.weights:
        for statistic in method.keeps(w):
            if called.setdefault(repr(statistic), statistic) != statistic:
                raise Misconfigured(f"two rules keep different statistics called {statistic!r}", "use one of the rules")
            for slot, spec in statistic.slots(w).items():
                tensors = plan.setdefault(key_of(statistic, slot), [])
                tensors += _factors(w, ranks[w.name]) if w.name in ranks else [Planned(w.name, spec.dtype, spec.shape)]
    return plan


def _factors(w: Weight, rank: int) -> list[Planned]:
    m, n = w.shape
    return [Planned(w.name + LEFT, "F32", (m, rank)), Planned(w.name + RIGHT, "F32", (rank, n))]


def pays(rank: int, shape: tuple[int, ...]) -> bool:
    """Whether two factors of so many columns take at most half of the bytes of their product."""
    return 0 < prod(shape) >= 2 * rank * sum(shape)


def factorable(method: Method, w: Weight) -> bool:
    """Whether a method can keep a weight's slot as two factors: one that it can fold so, and that is what is read out."""
    statistics = method.keeps(w)
    able = len(w.shape) == 2 and len(statistics) == 1 and statistics[0].factored and isinstance(statistics[0], Factored)
    return able and reads_slot(method, w)


def reads_slot(method: Method, w: Weight) -> bool:
    """Whether the read-out is one of the slots: asked with a weight of the same kind that has a few numbers."""
    if not method.rule.rowwise(w):  # it may take long, and reads more than a slot
        return False
    w = replace(w, shape=tuple(min(side, 2) for side in w.shape))
    kept = {
        statistic: {name: zeros(spec) for name, spec in statistic.slots(w).items()} for statistic in method.keeps(w)
    }
    try:
        merged = method.merged(kept, w, Counts(2, 2.0))
    except Exception:  # noqa: BLE001 - a rule that wants other values: then as much as it may need
        return False
    return any(merged is tensor for slots in kept.values() for tensor in slots.values())


def zeros(spec: SlotSpec, rows: Rows = None) -> Tensor:
    """Return a slot, or a block of its rows, as it is before the first fold."""
    shape = (rows[1] - rows[0], *spec.shape[1:]) if rows else spec.shape
    return torch.zeros(shape, dtype=TORCH_DTYPE[spec.dtype])


def read_tensor(reader: Reader, name: str, rows: Rows = None) -> Tensor:
    """Return a weight's tensor in a file of slots, or a block of its rows; the product where two factors are kept."""
    if name in reader.layout.tensors:
        return reader.read(name, rows)
    m = reader.layout.tensors[name + LEFT].shape[0]
    first, last = rows or (0, m)
    right, tiles = reader.read(name + RIGHT), range(first // TILE * TILE, last, TILE)
    parts = [reader.read(name + LEFT, (tile, min(tile + TILE, m))) @ right for tile in tiles]
    return torch.cat(parts)[first - tiles.start : last - tiles.start]


class KeptSlots:
    """The slots of a version, over open files; before the first fold there are none, and all is zero."""

    def __init__(self, slots: Mapping[SlotKey, Layout], stack: ExitStack, *, hashed: bool) -> None:
        self._readers = {key: stack.enter_context(Reader(layout, hashed=hashed)) for key, layout in slots.items()}

    @property
    def nbytes(self) -> int:
        """Bytes read so far."""
        return sum(reader.nbytes for reader in self._readers.values())

    def read(self, w: Weight, statistic: Statistic, rows: Rows = None) -> Slots:
        """Return a weight's slots, or a block of their rows. Raises DamagedFiles where they cannot be read."""
        return {slot: self._tensor(w, statistic, slot, rows) for slot in statistic.slots(w)}

    def _tensor(self, w: Weight, statistic: Statistic, slot: str, rows: Rows) -> Tensor:
        reader = self._readers.get(key_of(statistic, slot))
        if reader is not None:
            with _ours(reader.layout):
                return read_tensor(reader, w.name, rows)
        return zeros(statistic.slots(w)[slot], rows)

    def rank(self, w: Weight) -> int | None:
        """Return how many columns the factors of a weight's only slot have; None where it is kept whole."""
        if not self._readers:
            return 0
        found = (reader.layout.tensors.get(w.name + LEFT) for reader in self._readers.values())
        return next((left.shape[1] for left in found if left is not None), None)

    def factors(self, w: Weight) -> LowRank:
        """Return the factors of a weight's only slot."""
        for reader in self._readers.values():
            if w.name + LEFT in reader.layout.tensors:
                with _ours(reader.layout):
                    return LowRank(reader.read(w.name + LEFT), reader.read(w.name + RIGHT), w.shape)
        return LowRank.zero(w.shape)

    def check(self, digests: Mapping[str, str]) -> None:
        """Raise DamagedFiles unless what was read is what was once written: nothing is folded onto else.

        digests: of each file, by its path.
        """
        spoilt = [path for reader in self._readers.values() for path in reader.unlike(digests)]
        if spoilt:
            names = ["/".join(Path(path).parts[-3:]) for path in spoilt]
            raise DamagedFiles(f"{', '.join(names)} is not as it was written: nothing was folded onto it", *names)


@contextmanager
def _ours(layout: Layout) -> Iterator[None]:
    """Raise DamagedFiles where slots of the head cannot be read: they are no checkpoint's."""
    try:
        yield
    except Unavailable as error:
        within = ("/".join(Path(file).parts[-3:]) for file in layout.files)
        raise DamagedFiles(f"{error}; it is a file of the head", *within) from error
