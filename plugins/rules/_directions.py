"""The leading singular directions of an accumulator: how many are protected, and which they are.

They are found by the short side's Gram matrix, within the factors where there are two, or one by one.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

# Singular values under this share of the largest are rounding of float32 slots: their directions mean nothing.
RANK_TOLERANCE = 1e-6
CHUNK_ROWS = 256  # rows of A that are in float64 at a time
GRAM_BLOCK = 256  # columns of a Gram matrix that are computed at once, and mirrored


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
    squares, Q = torch.linalg.eigh(gram_matrix(tall))  # ascending
    S = squares.flip(0).clamp(min=0).sqrt()
    r = split_rank(S, alpha)
    short = Q[:, Q.shape[1] - r :].flip(1).to(A.dtype)
    long = tall @ (short / S[:r].to(A.dtype))
    U, V = (long, short) if tall is A else (short, long)
    return Directions(U, V, r, split_margin(S, alpha))


def gram_matrix(tall: Tensor) -> Tensor:
    """Return X^T X of X (long, short) in float64: a few rows of X at a time, and of what is symmetric one half."""
    short = tall.shape[1]
    gram = tall.new_zeros((short, short), dtype=torch.float64)
    for rows in _chunks(tall):
        for start in range(0, short, GRAM_BLOCK):
            gram[start : start + GRAM_BLOCK, start:].addmm_(rows[:, start : start + GRAM_BLOCK].T, rows[:, start:])
    return gram.triu_().add_(gram.triu(1).T)


def low_rank_directions(B: Tensor, A: Tensor, alpha: float) -> dict[str, Tensor]:
    """Return the split rank's leading singular directions of B A at the cost of its factors; B (m, q), A (q, n).

    B A = Q C W^T with orthonormal Q (m, q) and W (n, q), in the factors' dtype, and the core C (q, q), float64. In these bases
    the directions are U and V (q, r), float64; "margin" is that of the split rank.
    """
    Q, R_B = torch.linalg.qr(B.double())
    W, R_A = torch.linalg.qr(A.double().T)
    C = R_B @ R_A.T
    U, S, Vh = torch.linalg.svd(C)
    r, margin = split_rank(S, alpha), torch.tensor(split_margin(S, alpha), dtype=torch.float64)
    bases = {"Q": Q.to(B.dtype), "W": W.to(B.dtype), "C": C}
    return bases | {"U": U[:, :r].contiguous(), "V": Vh[:r].T.contiguous(), "margin": margin}


def all_directions(A: Tensor, alpha: float) -> Directions:
    """Return U (m, q), V (n, q), float64: the thin singular value decomposition of A (m, n) of numerical rank q."""
    U, S, Vh = torch.linalg.svd(A.double(), full_matrices=False)
    rank = split_rank(S, 1.0)
    return Directions(U[:, :rank], Vh[:rank].T, split_rank(S, alpha), split_margin(S, alpha))


def _chunks(tall: Tensor) -> Iterator[Tensor]:
    return (tall[start : start + CHUNK_ROWS].double() for start in range(0, tall.shape[0], CHUNK_ROWS))
