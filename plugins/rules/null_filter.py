"""NUFILT's closed-form half: of each newcomer only what leaves the outputs of all before it alone.

Source: arXiv 2509.21413 ("Null-Space Filtering for Data-Free Continual Model Merging"); the authors' `fusion_bench/models/filter_lora.py`
without its adapter, which is trained on a loss and has no closed form.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, get_args

import torch
from torch import Tensor

from ...state.records import Counts, SlotSpec, Weight
from ._matrices import MergesMatrices, each, matrix_bytes, newcomers, sides, stacked, untouched
from ._spectral import thin_svd
from ._sums import square
from .interface import (
    Folded,
    LowRank,
    Others,
    Recurrence,
    Slots,
    Statistic,
    Update,
    check_between,
    check_one_of,
)


def served(A: Tensor, rank: int) -> Tensor:
    """Return V (n, r), float64: the leading right singular vectors of A (m, n), the inputs that it answers most to."""
    return thin_svd(A)[2][:, :rank]


def null_filtered(D: Tensor | LowRank, V: Tensor) -> tuple[Tensor | LowRank, Tensor]:
    """Return D (I - V V^T), and D V, which is what it lost; D (m, n), V (n, r) with orthonormal columns, float64.

    In float64: the rounding of a large newcomer that is filtered whole must not drown what small ones left before it.
    """
    D = D.to(torch.float64)
    inside = (D.A if isinstance(D, LowRank) else D) @ V
    if isinstance(D, LowRank):
        return LowRank(D.B, D.A - inside @ V.T, D.shape), D.B @ inside
    return D - inside @ V.T, inside


@dataclass(frozen=True)
class Filtered(Recurrence):
    """The running sum of what the filter left of each task vector."""

    rank: int

    def working(self, w: Weight) -> int:
        """What formulas of matrices take."""
        return matrix_bytes(w)

    def slots(self, w: Weight) -> Mapping[str, SlotSpec]:
        """One slot of the weight's size, float64: see docs/decisions/0005."""
        batch, m, n = sides(w)
        return {"filtered": SlotSpec((*batch, m, n), "F64")}

    def rowwise(self, w: Weight) -> bool:
        """Of a batch, each matrix is for itself."""
        return bool(sides(w)[0])

    def prepare(self, kept: Slots, w: Weight) -> Slots:
        """Return the filter of each matrix: "V0" and so on."""
        return {f"V{i}": served(one[self]["filtered"], self.rank) for i, one in enumerate(each({self: kept}, w))}

    def step(self, kept: Slots, u: Update, w: Weight, before: Counts, prepared: Slots) -> Folded:
        """A' = A + share x D (I - V V^T)."""
        if untouched(u):
            return Folded(kept)
        known = prepared or self.prepare(kept, w)
        folded, ranks, removed = [], 0, 0.0
        for i, (one, D) in enumerate(zip(each({self: kept}, w), newcomers(u, w), strict=True)):
            A, V = one[self]["filtered"], known[f"V{i}"]
            left, lost = null_filtered(D, V)
            left = left.dense() if isinstance(left, LowRank) else left
            folded.append(A.add(left.to(A.dtype), alpha=u.share))
            ranks += V.shape[1]
            removed += square(lost)
        return Folded({"filtered": stacked(folded, w)}, ranks / len(folded), removed) if folded else Folded(kept)


@dataclass(frozen=True)
class NullFilter(MergesMatrices):
    """Takes from each newcomer what acts on the `rank` leading input directions of the merged task vector, and adds the rest.

    The first checkpoint that changes a matrix is added whole, and directions under 1e-5 of the largest are not protected
    (published: as many as `rank` says, whether they are there or not).
    """

    source: ClassVar[str] = "arXiv 2509.21413, without its trained adapter; zihuanqiu/NUFILT filter_lora.py"

    rank: int = 128
    others: Others = "mean"

    def __post_init__(self) -> None:
        check_between("rank", self.rank, 0, 10**6)
        check_one_of("others", self.others, get_args(Others))

    def of_matrix(self, w: Weight) -> tuple[Statistic, ...]:
        """Return the filtered sum."""
        return (Filtered(self.rank),)

    def matrix(self, kept: Mapping[Statistic, Slots], counts: Counts) -> Tensor:
        """Return it."""
        return kept[Filtered(self.rank)]["filtered"]
