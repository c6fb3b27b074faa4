"""OPCM: orthogonal projection with adaptive scaling, for checkpoints that arrive one after the other.

Source: arXiv 2501.09522 ("Merging Models on the Fly Without Retraining"), and its reference implementation, FusionBench
`method/opcm`. Carrying the unscaled accumulator A with the mean norm equals the paper's recurrence of the merged weights
and lambda, and needs no lambda.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from ...state.records import Counts, SlotSpec, Totals, Weight
from ._directions import RANK_TOLERANCE, Directions, all_directions, leading_directions, low_rank_directions
from ._matrices import is_matrix, matrices, pairs_up
from ._sums import adaptive_scale, inner, norm, square
from .interface import (
    NOTHING,
    Folded,
    LowRank,
    Others,
    ReadOut,
    Recurrence,
    Slots,
    Statistic,
    TaskSum,
    Update,
    check_between,
    check_one_of,
    read_others,
)

Variant = Literal["block", "orthogonal", "block_diagonal", "paper"]


def project(D: Tensor, U_r: Tensor, V_r: Tensor) -> Tensor:
    """Return D without what lies in the protected directions.

    D: (m, n) task vector; U_r: (m, r), V_r: (n, r) orthonormal columns.
    cleaned = D - U_r (U_r^T D V_r) V_r^T: the r x r block of D's coordinates in the accumulator's basis is zeroed.
    """
    P = U_r.T @ D @ V_r  # (r, r)
    return D - U_r @ P @ V_r.T


def project_factors(B: Tensor, A: Tensor, U_r: Tensor, V_r: Tensor) -> tuple[Tensor, Tensor]:
    """Return the factors that `project` of D = B A takes away: U_r (U_r^T D V_r) V_r^T = L R.

    B: (m, q), A: (q, n); U_r: (m, r), V_r: (n, r) orthonormal columns; L: (m, q), R: (q, n).
    """
    return U_r @ (U_r.T @ B), (A @ V_r) @ V_r.T


def project_paper(D: Tensor, U_r: Tensor, V_r: Tensor) -> Tensor:
    """Return D without every coordinate (i, j) with i < r or j < r: (I - U_r U_r^T) D (I - V_r V_r^T).

    D: (m, n); U_r: (m, r), V_r: (n, r). Source: arXiv 2501.09522, equation of the projection.
    """
    D = D - U_r @ (U_r.T @ D)
    return D - (D @ V_r) @ V_r.T


def drop_diagonal(D: Tensor, U_t: Tensor, V_t: Tensor) -> Tensor:
    """Return D without its coordinates (i, i) in the directions after the split rank.

    D: (m, n); U_t: (m, q - r), V_t: (n, q - r) orthonormal columns.
    """
    diagonal = ((U_t.T @ D) * V_t.T).sum(1)  # (q - r,): u_i^T D v_i
    return D - (U_t * diagonal) @ V_t.T


def drop_tail(cleaned: Tensor, A: Tensor, U_r: Tensor, V_r: Tensor) -> Tensor:
    """Return cleaned without its component along the accumulator's tail A_t, what of A lies outside the protected block.

    cleaned, A: (m, n); U_r: (m, r), V_r: (n, r) leading singular vectors of A. With the block gone, <A, cleaned> is
    <A_t, cleaned>: one scalar makes the two orthogonal, and leans on no single singular vector.
    """
    A_t = project(A, U_r, V_r)
    if norm(A_t) <= RANK_TOLERANCE * norm(A):  # everything is protected
        return cleaned
    return cleaned - A_t * (inner(A_t, cleaned) / square(A_t))


@dataclass(frozen=True)
class Accumulator(Recurrence):
    """OPCM's running, unscaled sum of what was kept of each task vector, for matrices and batches of them."""

    alpha: float
    variant: Variant

    @property
    def leading(self) -> bool:
        """Whether the leading directions are enough; the diagonal needs every one."""
        return self.variant in ("block", "orthogonal")

    def slots(self, w: Weight) -> Mapping[str, SlotSpec]:
        """One slot in the weight's shape: float32, but float64 for the variants that lean on every direction.

        Rounding to float32 at each fold changed those by 9 % (`block_diagonal`) and 46 % (`paper`) after 60 folds.
        """
        return {"accumulator": SlotSpec(w.shape, "F32" if self.leading else "F64")}

    def rowwise(self, w: Weight) -> bool:
        """A matrix is decomposed whole, a convolution too; of a batch, each matrix for itself."""
        return len(w.shape) > 2 and w.kind != "convolution"

    def prepare(self, kept: Slots, w: Weight) -> Slots:
        """Return the protected directions of each matrix: "U0", "V0" and so on, with "r0" and "margin0" as scalars."""
        return self._directions(kept["accumulator"], w, few=False)

    def _directions(self, accumulator: Tensor, w: Weight, few: bool) -> Slots:
        """`few`: look first whether there are few directions, as where only adapters were folded."""
        prepared: dict[str, Tensor] = {}
        for i, A in enumerate(matrices(accumulator, w)):
            if not A.any():  # nothing to protect: no checkpoint changed this weight
                found = Directions.none(A)
            elif self.leading and self.alpha < 1:
                found = (low_rank_directions(A, self.alpha) if few else None) or leading_directions(A, self.alpha)
            else:
                found = all_directions(A, self.alpha)
            scalars = {f"r{i}": torch.tensor(found.r), f"margin{i}": torch.tensor(found.margin, dtype=torch.float64)}
            prepared |= {f"U{i}": found.U, f"V{i}": found.V, **scalars}
        return prepared

    def step(self, kept: Slots, u: Update, w: Weight, before: Counts, prepared: Slots = NOTHING) -> Folded:
        """A' = A + share x cleaned. The first checkpoint, and one on a weight that none changed, is added whole."""
        factors = u.factors if self.variant == "block" and u.factors and pairs_up(u.factors, w) else None
        if u.factors is not None and not u.factors.rank:  # it does not change this weight
            return Folded({"accumulator": kept["accumulator"]})
        known = prepared or self._directions(kept["accumulator"], w, few=factors is not None)
        if factors is not None:
            return self._fold_factors(kept["accumulator"], factors, u.share, w, known)
        out, removed = kept["accumulator"].clone(), 0.0
        for i, (A, D) in enumerate(zip(matrices(out, w), matrices(u.delta, w), strict=True)):
            cleaned = self._clean(D, A, known[f"U{i}"], known[f"V{i}"], int(known[f"r{i}"]))
            removed += square(cleaned - D)
            A.add_(cleaned, alpha=u.share)
        return folded(out, known, removed)

    def _fold_factors(self, accumulator: Tensor, D: LowRank, share: float, w: Weight, known: Slots) -> Folded:
        """A' = A + share x (B A - L R): the newcomer's product is formed nowhere but in the accumulator."""
        out, removed = D.added_to(accumulator, share), 0.0
        pairs = zip(matrices(D.B, w), matrices(D.A, w), strict=True)
        for i, (matrix, (B, A)) in enumerate(zip(matrices(out, w), pairs, strict=True)):
            L, R = project_factors(B, A, known[f"U{i}"].to(B.dtype), known[f"V{i}"].to(B.dtype))
            matrix.addmm_(L, R, alpha=-share)
            removed += LowRank(L, R, tuple(matrix.shape)).norm() ** 2
        return folded(out, known, removed)

    def _clean(self, D: Tensor, A: Tensor, U: Tensor, V: Tensor, r: int) -> Tensor:
        """Return what is kept of D (m, n); A is the accumulator, U (m, q), V (n, q) with the first r columns protected."""
        D = D.to(U.dtype)
        protect = project_paper if self.variant == "paper" else project
        cleaned = protect(D, U[:, :r], V[:, :r])
        if self.variant == "orthogonal":
            return drop_tail(cleaned, A.to(U.dtype), U[:, :r], V[:, :r])
        return cleaned if self.variant == "block" else drop_diagonal(cleaned, U[:, r:], V[:, r:])


def folded(accumulator: Tensor, known: Slots, removed: float) -> Folded:
    """Return the accumulator after a fold, with the mean split rank of its matrices, and the least margin of any."""
    ranks = [float(one) for name, one in known.items() if name.startswith("r")]
    margins = [float(one) for name, one in known.items() if name.startswith("margin") and one > 0]
    mean = sum(ranks) / max(len(ranks), 1)
    return Folded({"accumulator": accumulator}, mean, removed, min(margins, default=0.0))


@dataclass(frozen=True)
class Opcm(ReadOut):
    """Orthogonal projection with adaptive scaling: keeps of each checkpoint what lies outside the leading directions.

    - `block` (default): zeroes the r x r leading block, as the released code that produced the published numbers does.
    - `orthogonal`: and the component along what is left of the accumulator, so that it is orthogonal to what is added.
    - `block_diagonal`: the block and the whole diagonal, as FusionBench does since 2025-03.
    - `paper`: zeroes every coordinate with i < r or j < r, and the diagonal.

    The last two lean on every single singular vector of a nearly flat spectrum: rounding changes their results.
    """

    source: ClassVar[str] = "arXiv 2501.09522; FusionBench method/opcm"

    alpha: float = 0.5
    variant: Variant = "block"
    others: Others = "sum"  # as published

    def __post_init__(self) -> None:
        check_between("alpha", self.alpha, 0, 1)
        check_one_of("variant", self.variant, get_args(Variant))
        check_one_of("others", self.others, get_args(Others))

    def keeps(self, w: Weight) -> tuple[Statistic, ...]:
        """Return the accumulator for matrices, and the plain sum for all else: A' = A + D."""
        return (Accumulator(self.alpha, self.variant),) if is_matrix(w) else (TaskSum(),)

    def rowwise(self, w: Weight) -> bool:
        """Always: the read-out is the slot."""
        return True

    def merged(self, kept: Mapping[Statistic, Slots], w: Weight, counts: Counts) -> Tensor:
        """Return A."""
        ((statistic, slots),) = kept.items()
        return slots["accumulator"] if isinstance(statistic, Accumulator) else read_others(self.others, kept, counts)

    def scale(self, totals: Totals) -> float:
        """Return the adaptive scale."""
        return adaptive_scale(totals.mean_norm, totals.readout_norm)
