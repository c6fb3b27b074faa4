"""OPCM: orthogonal projection with adaptive scaling, for checkpoints that arrive one after the other.

Source: arXiv 2501.09522 ("Merging Models on the Fly Without Retraining"), and its reference implementation, FusionBench
`method/opcm`. Carrying the unscaled accumulator A with the mean norm equals the paper's recurrence of the merged weights
and lambda, and needs no lambda.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import ClassVar, Literal, TypeVar, get_args

import torch
from torch import Tensor

from ...state.records import Counts, SlotSpec, Totals, Weight
from ._directions import CHUNK_ROWS, RANK_TOLERANCE, Directions, all_directions, leading_directions, low_rank_directions
from ._matrices import is_matrix, matrices, matrix_bytes, newcomers, sides, untouched
from ._sums import adaptive_scale, inner, norm, square
from .interface import (
    NOTHING,
    Folded,
    FoldedFactors,
    LowRank,
    Others,
    ReadOut,
    Recurrence,
    Slots,
    Statistic,
    TaskSum,
    Update,
    added,
    check_between,
    check_one_of,
    read_others,
)

T = TypeVar("T", Tensor, LowRank, Tensor | LowRank)
Variant = Literal["block", "orthogonal", "block_diagonal", "paper"]


def project(D: Tensor, U_r: Tensor, V_r: Tensor) -> Tensor:
    """Return D without what lies in the protected directions.

    D: (m, n) task vector; U_r: (m, r), V_r: (n, r) orthonormal columns.
    cleaned = D - U_r (U_r^T D V_r) V_r^T: the r x r block of D's coordinates in the accumulator's basis is zeroed.
    """
    P = U_r.T @ D @ V_r  # (r, r)
    return D - U_r @ P @ V_r.T


def coordinates(D: Tensor | LowRank, U_r: Tensor, V_r: Tensor) -> Tensor:
    """Return P = U_r^T D V_r, (r, r); D (m, n) or its two factors, U_r (m, r), V_r (n, r)."""
    if isinstance(D, LowRank):
        P: Tensor = (U_r.T @ D.B.to(U_r.dtype)) @ (D.A.to(U_r.dtype) @ V_r)
        return P
    D = D.to(U_r.dtype)
    return (U_r.T @ D) @ V_r if D.shape[0] > D.shape[1] else U_r.T @ (D @ V_r)


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


def subtract_product(A_new: Tensor, left: Tensor, right: Tensor, share: float) -> None:
    """Take share x left right out of A_new (m, n), in place; left (m, r), right (r, n)."""
    if A_new._is_view():  # see `settled`
        A_new.sub_(left @ right, alpha=share)
    else:
        A_new.addmm_(left, right, alpha=-share)


def settled(X: T) -> T:
    """Return X, a copy where it is one of a batch.

    These lie elsewhere in memory if their block begins elsewhere, which may change the last bits of a product.
    """
    return X.clone() if isinstance(X, Tensor) and X._is_view() else X


def tail_component(A_t: Tensor, A: Tensor, D: Tensor | LowRank) -> float:
    """Return c such that D - c A_t is orthogonal to A_t, the accumulator's tail: what of A lies outside the protected block.

    A_t, A, D: (m, n). With the block gone from D, <A, D> is <A_t, D>: one scalar makes the two orthogonal, and leans on no
    single singular vector. <A_t, D> is the same before the block goes, for A_t has nothing there.
    """
    if norm(A_t) <= RANK_TOLERANCE * norm(A):  # everything is protected
        return 0.0
    return (D.dot(A_t) if isinstance(D, LowRank) else inner(A_t, D.to(A_t.dtype))) / square(A_t)


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

    def working(self, w: Weight) -> int:
        """The decomposition of one matrix at a time: its Gram matrix, LAPACK's workspace, the directions on both sides."""
        batch, m, n = sides(w)
        short = min(m, n)
        if not self.leading or self.alpha == 1:
            return matrix_bytes(w)
        return prod(batch) * (8 * (min(CHUNK_ROWS, max(m, n)) * short + 5 * short * short) + 4 * short * (m + n))

    @property
    def factored(self) -> bool:
        """Whether the accumulator may be kept as two factors: where the leading directions are enough."""
        return self.leading

    def prepare(self, kept: Slots, w: Weight) -> Slots:
        """Return the protected directions of each matrix: "U0", "V0" and so on, with "r0" and "margin0" as scalars."""
        prepared: dict[str, Tensor] = {}
        for i, A in enumerate(map(settled, matrices(kept["accumulator"], w))):
            if not A.any():  # nothing to protect: no checkpoint changed this weight
                found = Directions.none(A)
            elif self.leading and self.alpha < 1:
                found = leading_directions(A, self.alpha)
            else:
                found = all_directions(A, self.alpha)
            prepared |= {f"U{i}": found.U, f"V{i}": found.V, f"r{i}": torch.tensor(found.r)}
            prepared |= {f"margin{i}": torch.tensor(found.margin, dtype=torch.float64)}
        return prepared

    def step(self, kept: Slots, u: Update, w: Weight, before: Counts, prepared: Slots = NOTHING) -> Folded:
        """A' = A + share x cleaned. The first checkpoint, and one on a weight that none changed, is added whole."""
        if untouched(u):
            return Folded(kept)
        known, removed = prepared or self.prepare(kept, w), 0.0
        out = added(kept["accumulator"], u)
        olds, news = matrices(kept["accumulator"], w), matrices(out, w)
        for i, (A, A_new, D) in enumerate(zip(olds, news, newcomers(u, w), strict=True)):
            U, V, r = known[f"U{i}"], known[f"V{i}"], int(known[f"r{i}"])
            if self.leading:
                removed += self._take_block(A_new, A, settled(D), U[:, :r], V[:, :r], u.share)
            else:
                removed += self._take_diagonal(A_new, D, U, V, r, u.share)
        return folded(out, known, removed)

    def _take_block(self, A_new: Tensor, A: Tensor, D: Tensor | LowRank, U: Tensor, V: Tensor, share: float) -> float:
        """Take the protected block of D out of A_new = A + share x D; returns its squared norm, that of its coordinates.

        A, D: (m, n); U (m, r), V (n, r) are orthonormal.
        """
        P = coordinates(D, U, V)  # (r, r)
        left, right = (U @ P, V.T) if U.shape[0] < V.shape[0] else (U, P @ V.T)
        subtract_product(A_new, left.to(A_new.dtype), right.to(A_new.dtype), share)
        return square(P) + (self._take_tail(A_new, A, D, U, V, share) if self.variant == "orthogonal" else 0.0)

    def _take_tail(self, A_new: Tensor, A: Tensor, D: Tensor | LowRank, U: Tensor, V: Tensor, share: float) -> float:
        """Take D's component along the accumulator's tail out of A_new too; returns its squared norm."""
        A_t = project(A, U.to(A.dtype), V.to(A.dtype))
        c = tail_component(A_t, A, D)
        A_new.add_(A_t, alpha=-share * c)
        return c * c * square(A_t)

    def _take_diagonal(self, A_new: Tensor, D: Tensor | LowRank, U: Tensor, V: Tensor, r: int, share: float) -> float:
        """Take the diagonal out of A_new too, and whatever else the variant takes; returns its squared norm."""
        D = (D.dense() if isinstance(D, LowRank) else D).to(U.dtype)
        protect = project_paper if self.variant == "paper" else project
        taken = D - drop_diagonal(protect(D, U[:, :r], V[:, :r]), U[:, r:], V[:, r:])
        A_new.sub_(taken.to(A_new.dtype), alpha=share)
        return square(taken)

    # ------------------------------------------------------------------------------------------- kept as two factors

    def prepare_factors(self, kept: LowRank, w: Weight) -> Slots:
        """Return what the fold needs of A = B A_r: its singular directions, within orthonormal bases of both sides."""
        return low_rank_directions(kept.B, kept.A, self.alpha)

    def fold_factors(self, kept: LowRank, u: Update, D: LowRank, w: Weight, prepared: Slots) -> FoldedFactors:
        """Return A' = A + share x cleaned as factors, of as many columns as A and D have together.

        In the bases Q (m, q) and W (n, q) of A = Q C W^T all that is taken out is a change of the core C (q, q).
        """
        Q, W, C, U, V = (prepared[name] for name in ("Q", "W", "C", "U", "V"))
        P = U.T @ ((Q.T @ D.B).double() @ (D.A @ W).double()) @ V  # (r, r)
        taken, removed = U @ P @ V.T, square(P)
        if self.variant == "orthogonal":
            C_t = project(C, U, V)
            c = tail_component(C_t, C, (Q.T @ D.B).double() @ (D.A @ W).double())
            taken, removed = taken + c * C_t, removed + c * c * square(C_t)
        core = (C - u.share * taken).to(Q.dtype)
        B, A = torch.cat([Q @ core, u.share * D.B], 1), torch.cat([W.T, D.A], 0)
        margin = float(prepared["margin"])
        return FoldedFactors(LowRank(B, A, w.shape), float(U.shape[1]), removed, margin)


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

    def working(self, w: Weight) -> int:
        """Nothing but where the mean is formed."""
        return 0 if self.others == "sum" or is_matrix(w) else 4 * w.size

    def merged(self, kept: Mapping[Statistic, Slots], w: Weight, counts: Counts) -> Tensor:
        """Return A."""
        ((statistic, slots),) = kept.items()
        return slots["accumulator"] if isinstance(statistic, Accumulator) else read_others(self.others, kept, counts)

    def scale(self, totals: Totals) -> float:
        """Return the adaptive scale."""
        return adaptive_scale(totals.mean_norm, totals.readout_norm)
