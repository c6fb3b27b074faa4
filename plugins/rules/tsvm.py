"""TSV-M: of each checkpoint its leading singular triplets, made orthogonal to those of all others.

Source: arXiv 2412.00081 ("Task Singular Vectors: Reducing Task Interference in Model Merging"), TSV-Merge; the authors'
`src/utils/TSVM_utils.py`. Of T checkpoints each keeps floor(k / T) triplets, k = min(m, n): their ranks never sum to more than k, so
that k columns hold them whatever T is, and what the next checkpoint makes of them is a part of what is there.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, get_args

import torch
from torch import Tensor

from ...state.records import Counts, SlotSpec, Totals, Weight
from ._matrices import MergesMatrices, each, matrix_bytes, newcomers, sides, stacked, untouched
from ._spectral import polar, thin_svd_of
from .interface import (
    Folded,
    LowRank,
    Others,
    Recurrence,
    Slots,
    Statistic,
    TaskSum,
    Update,
    check_between,
    check_one_of,
)


def orthogonalised(U: Tensor, S: Tensor, V: Tensor) -> Tensor:
    """Return polar(U) S polar(V)^T, (m, n); U (m, k), S (k,) and V (n, k) hold the triplets of all checkpoints."""
    return polar(U) * S @ polar(V).T


def signed(U: Tensor, S: Tensor, V: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the triplets with the largest number of each left vector positive, so that a checkpoint has but one form."""
    signs = U.gather(0, U.abs().argmax(0, keepdim=True)).sign() if U.numel() else 1.0
    return U * signs, S, V * signs


def narrowed(columns: Tensor, blocks: int, most: int) -> Tensor:
    """Return the first `most` columns of each of the equal blocks that k columns hold; columns are (..., k)."""
    before = columns.shape[-1] // blocks
    head = columns[..., : blocks * before].reshape(*columns.shape[:-1], blocks, before)
    return head[..., :most].reshape(*columns.shape[:-1], blocks * most)


def with_block(kept: Slots, D: Tensor | LowRank, share: float) -> Slots:
    """Return the slots of one matrix with the newcomer's triplets; those of a share under 1 weigh so much less."""
    U, S, V = signed(*thin_svd_of(D))
    if not len(S):
        return kept
    blocks, k = int(kept["blocks"]), len(kept["S"])
    most = k // (blocks + 1)
    slots = {"blocks": kept["blocks"] + 1, "shares": kept["shares"] + share}
    for name, news in (("U", U), ("S", share * S), ("V", V)):
        slot = torch.zeros_like(kept[name])
        if blocks and most:
            slot[..., : blocks * most] = narrowed(kept[name], blocks, most)
        leading = news[..., :most]
        slot[..., blocks * most : blocks * most + leading.shape[-1]] = leading
        slots[name] = slot
    return slots


@dataclass(frozen=True)
class Triplets(Recurrence):
    """The leading singular triplets of each checkpoint, in k columns; a share of 2 is two blocks of them."""

    ordered: ClassVar[bool] = False  # the blocks lie as they came, but what is read of them does not tell

    def working(self, w: Weight) -> int:
        """What formulas of matrices take."""
        return matrix_bytes(w)

    def slots(self, w: Weight) -> Mapping[str, SlotSpec]:
        """The columns, how many blocks they hold, and what share of checkpoints those are."""
        batch, m, n = sides(w)
        k = min(m, n)
        return {
            "U": SlotSpec((*batch, m, k)),
            "S": SlotSpec((*batch, k)),
            "V": SlotSpec((*batch, n, k)),
            "blocks": SlotSpec(batch),
            "shares": SlotSpec(batch),
        }

    def rowwise(self, w: Weight) -> bool:
        """Of a batch, each matrix is for itself."""
        return bool(sides(w)[0])

    def step(self, kept: Slots, u: Update, w: Weight, before: Counts, prepared: Slots) -> Folded:
        """Take in the newcomer's triplets, and let go of those for which there is no room any more."""
        if untouched(u):
            return Folded(kept)
        given = newcomers(u, w)
        pairs = zip(each({self: kept}, w), given, strict=True)
        folded = [with_block(one[self], D, u.share) for one, D in pairs]
        return Folded({name: stacked([one[name] for one in folded], w) for name in kept} if folded else kept)


@dataclass(frozen=True)
class TsvM(MergesMatrices):
    """Keeps floor(k / T) singular triplets of each checkpoint and makes them orthogonal; k is the short side.

    Triplets under 1e-5 of their checkpoint's largest are left out, and nearly coinciding ones are not told apart. With more
    checkpoints than k, where not one triplet each is left, the matrix is the mean. A checkpoint that does not change a
    matrix has no say in it.
    """

    source: ClassVar[str] = "arXiv 2412.00081; the authors' TSVM_utils.py; FusionBench method/task_singular_vector"

    lambda_: float = 1.0
    others: Others = "mean"

    def __post_init__(self) -> None:
        check_between("lambda", self.lambda_, -1e6, 1e6)
        check_one_of("others", self.others, get_args(Others))

    def of_matrix(self, w: Weight) -> tuple[Statistic, ...]:
        """Return the triplets, and the sum as the way out."""
        return (Triplets(), TaskSum())

    def matrix(self, kept: Mapping[Statistic, Slots], counts: Counts) -> Tensor:
        """Return the orthogonalised triplets, or the mean."""
        triplets, total = kept[Triplets()], kept[TaskSum()]["sum"]
        if not triplets["blocks"]:
            return total
        if int(triplets["blocks"]) > len(triplets["S"]):
            return total / float(triplets["shares"])
        return orthogonalised(triplets["U"], triplets["S"].double(), triplets["V"])

    def scale(self, totals: Totals) -> float:
        """Return lambda."""
        return self.lambda_
