"""OPCM: orthogonal projection with adaptive scaling, for checkpoints that arrive one after the other.

Source: arXiv 2501.09522 ("Merging Models on the Fly Without Retraining"), and its reference implementation, FusionBench
`method/opcm`. Carrying the unscaled accumulator A with the mean norm equals the paper's recurrence of the merged weights
and lambda, and needs no lambda.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from ...state.records import Counts, SlotSpec, Totals, Weight
from ._sums import adaptive_scale, norm, square
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

Variant = Literal["block", "block_diagonal", "paper"]

# Singular values under this share of the largest are rounding of float32 slots: their directions mean nothing.
RANK_TOLERANCE = 1e-6
CHUNK_ROWS = 1024  # rows of A that are in float64 at a time
MIN_SKETCH = 16  # columns; what has fewer directions to look for is decomposed at once


def split_rank(S: Tensor, alpha: float) -> int:
    """Return how many leading directions hold the share `alpha` of the singular-value sum.

    S: (k,) singular values, descending. The first 0-based index where cumsum(S) / sum(S) > alpha, as the reference
    implementation has it; alpha = 1 protects every direction that is there, and S = 0 protects nothing.
    """
    rank = int((RANK_TOLERANCE * S[0] < S).sum()) if S.numel() else 0
    if rank == 0 or alpha >= 1:
        return rank
    share = S[:rank].cumsum(0) / S[:rank].sum()
    return min(int((share <= alpha).sum()), rank)


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


def leading_directions(A: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """Return U_r (m, r) and V_r (n, r), float32: the split rank's leading singular directions of A (m, n).

    By the eigenvectors of the float64 Gram matrix of the short side. It squares the singular values, which costs
    accuracy only where they are small; those directions are not the leading ones.
    """
    tall = A if A.shape[0] >= A.shape[1] else A.T  # (long, short)
    gram = A.new_zeros((tall.shape[1], tall.shape[1]), dtype=torch.float64)
    for rows in _chunks(tall):
        gram.addmm_(rows.T, rows)
    squares, Q = torch.linalg.eigh(gram)  # ascending
    S = squares.flip(0).clamp(min=0).sqrt()
    r = split_rank(S, alpha)
    short = Q.flip(1)[:, :r]
    long = torch.cat([(rows @ short / S[:r]).float() for rows in _chunks(tall)])
    return (long, short.float()) if tall is A else (short.float(), long)


def low_rank_directions(A: Tensor, alpha: float) -> tuple[Tensor, Tensor] | None:
    """Return `leading_directions` of A (m, n) at the cost of its rank; None where that is no small part of its side.

    A sum of few adapters has few directions: q random combinations of its columns span them (Halko, Martinsson, Tropp,
    "Finding structure with randomness", arXiv 0909.4061, algorithm 4.1), which the rest that they leave out confirms.
    """
    short = min(A.shape)
    tolerance = RANK_TOLERANCE * norm(A)
    for q in (short >> shift for shift in (6, 5, 4, 3)):
        if q < MIN_SKETCH:
            continue
        noise = torch.randn(A.shape[1], q, generator=torch.Generator().manual_seed(q), dtype=A.dtype)
        Q = torch.linalg.qr((A @ noise).double())[0].to(A.dtype)  # (m, q)
        inside = Q.T @ A  # (q, n)
        rest = norm(torch.addmm(A, Q, inside, alpha=-1))
        if rest <= tolerance:
            U, S, Vh = torch.linalg.svd(inside.double(), full_matrices=False)
            r = split_rank(S, alpha)
            return Q @ U[:, :r].to(A.dtype), Vh[:r].T.to(A.dtype).contiguous()
    return None


def all_directions(A: Tensor, alpha: float) -> tuple[Tensor, Tensor, int]:
    """Return U (m, q), V (n, q), float64, and the split rank r <= q: the thin SVD of A (m, n) of numerical rank q."""
    U, S, Vh = torch.linalg.svd(A.double(), full_matrices=False)
    rank = split_rank(S, 1.0)
    return U[:, :rank], Vh[:rank].T, split_rank(S, alpha)


def _chunks(tall: Tensor) -> Iterator[Tensor]:
    return (tall[start : start + CHUNK_ROWS].double() for start in range(0, tall.shape[0], CHUNK_ROWS))


@dataclass(frozen=True)
class Accumulator(Recurrence):
    """OPCM's running, unscaled sum of what was kept of each task vector, for matrices and batches of them."""

    alpha: float
    variant: Variant

    def slots(self, w: Weight) -> Mapping[str, SlotSpec]:
        """One slot in the weight's shape: float32, but float64 for the variants that lean on every direction.

        Rounding to float32 at each fold changed those by 9 % (`block_diagonal`) and 46 % (`paper`) after 60 folds.
        """
        return {"accumulator": SlotSpec(w.shape, "F32" if self.variant == "block" else "F64")}

    def rowwise(self, w: Weight) -> bool:
        """A matrix is decomposed whole, a convolution too; of a batch, each matrix for itself."""
        return len(w.shape) > 2 and w.kind != "convolution"

    def prepare(self, kept: Slots, w: Weight) -> Slots:
        """Return the protected directions of each matrix: "U0", "V0" and so on, and "r0" as a scalar."""
        return self._directions(kept["accumulator"], w, few=False)

    def _directions(self, accumulator: Tensor, w: Weight, few: bool) -> Slots:
        """`few`: look first whether there are few directions, as where only adapters were folded."""
        prepared: dict[str, Tensor] = {}
        for i, A in enumerate(_matrices(accumulator, w)):
            if not A.any():  # nothing to protect: no checkpoint changed this weight
                U, V, r = A.new_zeros(A.shape[0], 0), A.new_zeros(A.shape[1], 0), 0
            elif self.variant == "block" and self.alpha < 1:
                sketched = low_rank_directions(A, self.alpha) if few else None
                U, V = sketched or leading_directions(A, self.alpha)
                r = U.shape[1]
            else:
                U, V, r = all_directions(A, self.alpha)
            prepared |= {f"U{i}": U, f"V{i}": V, f"r{i}": torch.tensor(r)}
        return prepared

    def step(self, kept: Slots, u: Update, w: Weight, before: Counts, prepared: Slots = NOTHING) -> Folded:
        """A' = A + share x cleaned. The first checkpoint, and one on a weight that none changed, is added whole."""
        factors = u.factors if self.variant == "block" and u.factors and _pairs_up(u.factors, w) else None
        if u.factors is not None and not u.factors.rank:  # it does not change this weight
            return Folded({"accumulator": kept["accumulator"]})
        known = prepared or self._directions(kept["accumulator"], w, few=factors is not None)
        if factors is not None:
            return self._fold_factors(kept["accumulator"], factors, u.share, w, known)
        A = kept["accumulator"].clone()
        ranks, removed = 0, 0.0
        deltas = _matrices(u.delta, w)
        for i, (A_i, D) in enumerate(zip(_matrices(A, w), deltas, strict=True)):
            r = int(known[f"r{i}"])
            cleaned = self._clean(D, known[f"U{i}"], known[f"V{i}"], r)
            A_i.add_(cleaned, alpha=u.share)
            ranks += r
            removed += square(cleaned - D)
        return Folded({"accumulator": A}, ranks / max(len(deltas), 1), removed)

    def _fold_factors(self, accumulator: Tensor, D: LowRank, share: float, w: Weight, known: Slots) -> Folded:
        """A' = A + share x (B A - L R): the newcomer's product is formed nowhere but in the accumulator."""
        out = D.added_to(accumulator, share)
        ranks, removed = 0, 0.0
        matrices = _matrices(out, w)
        pairs = zip(_matrices(D.B, w), _matrices(D.A, w), strict=True)
        for i, (matrix, (B, A)) in enumerate(zip(matrices, pairs, strict=True)):
            U, V = known[f"U{i}"].to(B.dtype), known[f"V{i}"].to(B.dtype)
            L, R = project_factors(B, A, U, V)
            matrix.addmm_(L, R, alpha=-share)
            ranks += U.shape[1]
            removed += LowRank(L, R, tuple(matrix.shape)).norm() ** 2
        return Folded({"accumulator": out}, ranks / max(len(matrices), 1), removed)

    def _clean(self, D: Tensor, U: Tensor, V: Tensor, r: int) -> Tensor:
        """Return what is kept of D (m, n); U (m, q), V (n, q) with the first r columns protected."""
        D = D.to(U.dtype)
        protect = project_paper if self.variant == "paper" else project
        cleaned = protect(D, U[:, :r], V[:, :r])
        return cleaned if self.variant == "block" else drop_diagonal(cleaned, U[:, r:], V[:, r:])


def _pairs_up(factors: LowRank, w: Weight) -> bool:
    """Whether each of a weight's matrices has its own two factors; of a kernel that is told as one matrix it has not."""
    joined = (*factors.B.shape[:-1], factors.A.shape[-1])
    return len(joined) == 2 if w.kind == "convolution" else joined == factors.shape


def _matrices(tensor: Tensor, w: Weight) -> tuple[Tensor, ...]:
    """Return views of the matrices of a batch (..., m, n); of a convolution (m, ...), the one of all that follows m."""
    if w.kind == "convolution":
        return (tensor.reshape(tensor.shape[0], -1),)
    return tensor.reshape(-1, *tensor.shape[-2:]).unbind(0) if tensor.ndim > 2 else (tensor,)


@dataclass(frozen=True)
class Opcm(ReadOut):
    """Orthogonal projection with adaptive scaling: keeps of each checkpoint what lies outside the leading directions.

    - `block` (default): zeroes the r x r leading block, as the released code that produced the published numbers does.
    - `block_diagonal`: and the whole diagonal, as FusionBench does since 2025-03.
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
        projected = w.kind in ("matrix", "convolution")
        return (Accumulator(self.alpha, self.variant),) if projected else (TaskSum(),)

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
