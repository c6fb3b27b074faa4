"""What the matrix rules share: which matrices a weight has, and how a rule that merges each by itself is put together."""

from collections.abc import Mapping
from math import prod

import torch
from torch import Tensor

from ...state.records import Counts, Weight
from .interface import (
    Folded,
    LowRank,
    Others,
    ReadOut,
    Slots,
    Statistic,
    Sum,
    TaskSum,
    Update,
    read_others,
    working_bytes,
)

GRAMS = 6  # square matrices of the short side, float64, that formulas of matrices have alive at once: LAPACK takes most


def is_matrix(w: Weight) -> bool:
    """Whether a weight is a matrix, a batch of them, or a convolution (one matrix of all that follows the first side)."""
    return w.kind in ("matrix", "convolution")


def sides(w: Weight) -> tuple[tuple[int, ...], int, int]:
    """Return the batch (empty where there is none), m and n of a weight's matrices."""
    if w.kind == "convolution":
        return (), w.shape[0], prod(w.shape[1:])
    return w.shape[:-2], w.shape[-2], w.shape[-1]


def matrices(tensor: Tensor, w: Weight) -> tuple[Tensor, ...]:
    """Return views of the matrices of a batch (..., m, n), or the one of a convolution (m, ...)."""
    if w.kind == "convolution":
        return (tensor.flatten(1),)
    return tensor.flatten(0, -3).unbind(0) if tensor.ndim > 2 else (tensor,)


def newcomers(u: Update, w: Weight) -> tuple[Tensor | LowRank, ...]:
    """Return the task vector of each matrix: as two factors where the checkpoint gives each of them its own."""
    if u.factors is None or not pairs_up(u.factors, w):
        return matrices(u.delta, w)
    pairs = zip(matrices(u.factors.B, w), matrices(u.factors.A, w), strict=True)
    return tuple(LowRank(B, A, (B.shape[0], A.shape[1])) for B, A in pairs)


def pairs_up(factors: LowRank, w: Weight) -> bool:
    """Whether each of a weight's matrices has its own two factors; of a kernel that is told as one matrix it has not."""
    joined = (*factors.B.shape[:-1], factors.A.shape[-1])
    return len(joined) == 2 if w.kind == "convolution" else joined == factors.shape


def each(kept: Mapping[Statistic, Slots], w: Weight) -> list[dict[Statistic, Slots]]:
    """Return the slots of each matrix by themselves; a batch may be a block of its first matrices."""
    batch, m, n = sides(w)

    def parts(slot: Tensor) -> tuple[Tensor, ...]:
        if not batch:
            return (slot.reshape(m, n) if slot.shape == w.shape else slot,)
        return slot.reshape(slot.shape[: len(batch)].numel(), *slot.shape[len(batch) :]).unbind(0)

    split = {s: {name: parts(slot) for name, slot in slots.items()} for s, slots in kept.items()}
    count = len(next(iter(next(iter(split.values())).values())))
    return [{s: {name: slot[i] for name, slot in slots.items()} for s, slots in split.items()} for i in range(count)]


def stacked(each: list[Tensor], w: Weight) -> Tensor:
    """Return what was computed of each matrix as one slot: with the batch's sides before it, if there is a batch."""
    batch, _, _ = sides(w)
    if not batch:
        return each[0]
    return torch.stack(each).reshape(-1, *batch[1:], *each[0].shape)


def matrix_bytes(w: Weight) -> int:
    """Return the bytes that formulas of matrices fit into: float64 copies of the weight, and of Gram matrices of the short side."""
    batch, m, n = sides(w)
    return working_bytes(w) + 8 * GRAMS * min(m, n) ** 2 * prod(batch)


def untouched(u: Update) -> bool:
    """Whether an adapter has nothing for this weight: what is kept stays the same object then, and is not written anew."""
    return u.factors is not None and not u.factors.rank


class MatrixSum(Sum):
    """A sum of what each matrix of a weight makes of its task vector; a zero one must add nothing."""

    def rowwise(self, w: Weight) -> bool:
        """Of a batch, each matrix is for itself."""
        return bool(sides(w)[0])

    def working(self, w: Weight) -> int:
        """What formulas of matrices take."""
        return matrix_bytes(w)

    def _added(self, kept: Slots, u: Update, w: Weight, share: float) -> Folded:
        return Folded(kept) if untouched(u) else super()._added(kept, u, w, share)


class MergesMatrices(ReadOut):
    """A rule that merges each matrix by itself and reads all other weights plainly; a subclass writes the two below."""

    others: Others

    def of_matrix(self, w: Weight) -> tuple[Statistic, ...]:
        """Return the statistics that are kept of a matrix."""
        raise NotImplementedError

    def matrix(self, kept: Mapping[Statistic, Slots], counts: Counts) -> Tensor:
        """Return the read-out of one matrix, (m, n), of its own slots."""
        raise NotImplementedError

    def keeps(self, w: Weight) -> tuple[Statistic, ...]:
        """Return the statistics of a matrix, and the plain sum for all else."""
        return self.of_matrix(w) if is_matrix(w) else (TaskSum(),)

    def working(self, w: Weight) -> int:
        """What formulas of matrices take; of what is none, the mean."""
        return matrix_bytes(w) if is_matrix(w) else 4 * w.size

    def rowwise(self, w: Weight) -> bool:
        """A matrix is read whole."""
        return not is_matrix(w)

    def merged(self, kept: Mapping[Statistic, Slots], w: Weight, counts: Counts) -> Tensor:
        """Return the read-out, in the weight's shape."""
        if not is_matrix(w):
            return read_others(self.others, kept, counts)
        if not prod(w.shape):
            return torch.zeros(w.shape)
        return torch.stack([self.matrix(one, counts).float() for one in each(kept, w)]).reshape(w.shape)
