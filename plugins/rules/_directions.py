"""The leading singular directions of an accumulator: how many are protected, and which they are.

They are found by the short side's Gram matrix, by random combinations where there are few, or one by one.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ._sums import norm

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


def split_margin(S: Tensor, alpha: float) -> float:
    """Return how far the split rank is from being another one, as a share of the singular-value sum; 0 where S = 0."""
    rank = split_rank(S, 1.0)
    share = S[:rank].cumsum(0) / S[:rank].sum()
    if rank == 0 or alpha >= 1:  # then the last direction is the nearest to being left out
        return float(S[rank - 1] / S[:rank].sum()) if rank else 0.0
    return float((share - alpha).abs().min())


@dataclass(frozen=True)
class Directions:
    """Singular directions of an accumulator (m, n); the first r of them are protected."""

    U: Tensor  # (m, q), orthonormal columns
    V: Tensor  # (n, q)
    r: int
    margin: float  # how far r was from being another number, as a share of the singular-value sum

    @staticmethod
    def none(A: Tensor) -> "Directions":
        """Return those of a matrix that no checkpoint changed."""
        return Directions(A.new_zeros(A.shape[0], 0), A.new_zeros(A.shape[1], 0), 0, 0.0)


def leading_directions(A: Tensor, alpha: float) -> Directions:
    """Return U_r (m, r) and V_r (n, r), in A's dtype: the split rank's leading singular directions of A (m, n).

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
    long = torch.cat([(rows @ short / S[:r]).to(A.dtype) for rows in _chunks(tall)])
    short = short.to(A.dtype)
    U, V = (long, short) if tall is A else (short, long)
    return Directions(U, V, r, split_margin(S, alpha))


def low_rank_directions(A: Tensor, alpha: float) -> Directions | None:
    """Return `leading_directions` of A (m, n) at the cost of its rank; None where that is no small part of its side.

    A sum of few adapters has few directions: q random combinations of its columns span them (Halko, Martinsson, Tropp,
    "Finding structure with randomness", arXiv 0909.4061, algorithm 4.1), which the rest that they leave out confirms.
    """
    short = min(A.shape)
    tolerance = RANK_TOLERANCE * norm(A)
    for q in (short >> shift for shift in (6, 5, 4, 3)):
        if q < MIN_SKETCH:
            continue
        noise = torch.randn(A.shape[1], q, generator=torch.Generator().manual_seed(q), dtype=A.dtype).to(A.device)
        Q = torch.linalg.qr((A @ noise).double())[0].to(A.dtype)  # (m, q)
        inside = Q.T @ A  # (q, n)
        rest = norm(torch.addmm(A, Q, inside, alpha=-1))
        if rest <= tolerance:
            U, S, Vh = torch.linalg.svd(inside.double(), full_matrices=False)
            r = split_rank(S, alpha)
            left, right = Q @ U[:, :r].to(A.dtype), Vh[:r].T.to(A.dtype).contiguous()
            return Directions(left, right, r, split_margin(S, alpha))
    return None


def all_directions(A: Tensor, alpha: float) -> Directions:
    """Return U (m, q), V (n, q), float64: the thin singular value decomposition of A (m, n) of numerical rank q."""
    U, S, Vh = torch.linalg.svd(A.double(), full_matrices=False)
    rank = split_rank(S, 1.0)
    return Directions(U[:, :rank], Vh[:rank].T, split_rank(S, alpha), split_margin(S, alpha))


def _chunks(tall: Tensor) -> Iterator[Tensor]:
    return (tall[start : start + CHUNK_ROWS].double() for start in range(0, tall.shape[0], CHUNK_ROWS))
