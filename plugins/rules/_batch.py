"""What the rules that see all checkpoints at once share: leading directions, and weights that are none."""

from collections.abc import Sequence
from math import isfinite

import torch
from torch import Tensor

from ...state.records import Weight
from ._spectral import RANK_TOLERANCE
from .interface import Others

MOST = 10**6  # what no count among a rule's parameters can mean to exceed
CHUNK = 2**16  # numbers that are in float64 at a time


def is_matrix(w: Weight) -> bool:
    """Whether a weight is one matrix or more, and not empty."""
    return w.kind in ("matrix", "convolution") and w.size > 0


def total(taus: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
    """Return the sum of share x tau, in float64."""
    out = torch.zeros_like(taus[0], dtype=torch.float64)
    for tau, share in zip(taus, shares, strict=True):
        out.add_(tau, alpha=share)
    return out


def plain(taus: Sequence[Tensor], shares: Sequence[float], others: Others) -> Tensor:
    """Return the mean or the sum of task vectors, each as often as its share says."""
    summed = total(taus, shares)
    return (summed if others == "sum" else summed / sum(shares)).to(taus[0].dtype)


def leading(A: Tensor, q: int, floor: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
    """Return U (m, q'), S (q',) and V (n, q'), float64: the q' <= q leading singular triplets of A (m, n).

    Those under `floor`, or under the tolerance, point nowhere and are left out. By the eigenvectors of the Gram matrix
    of the short side, in float64: it tells singular values down to 1e-8 of the largest from zero.
    """
    tall = A if A.shape[0] >= A.shape[1] else A.T  # (long, short)
    gram = tall.new_zeros((tall.shape[1], tall.shape[1]), dtype=torch.float64)
    for rows in row_slices(tall):
        block = tall[rows].double()
        gram.addmm_(block.T, block)
    squares, Q = torch.linalg.eigh(gram)  # ascending
    S = squares.flip(0).clamp(min=0).sqrt()
    floor = max(floor, RANK_TOLERANCE * float(S[:1].sum()))
    q = min(q, int((floor < S).sum()))
    short = Q.flip(1)[:, :q].contiguous()
    long = torch.cat([tall[rows].double() @ short / S[:q] for rows in row_slices(tall)])
    return (long, S[:q], short) if tall is A else (short, S[:q], long)


def polar(U: Tensor) -> Tensor:
    """Return U (U^T U)^(-1/2), float64: the nearest matrix with orthonormal columns; U (m, q) float64.

    Where columns depend on one another, as those of duplicates do, the inverse is taken on their range alone.
    """
    if not U.shape[1]:
        return U
    squares, Q = torch.linalg.eigh(U.T @ U)
    kept = squares > RANK_TOLERANCE**2 * squares.amax()
    Q = Q[:, kept]
    factor: Tensor = U @ (Q / squares[kept].sqrt()) @ Q.T
    return factor


def row_slices(A: Tensor) -> list[slice]:
    """Return the slices of the rows of A (m, n) that hold some CHUNK numbers each."""
    step = max(1, CHUNK // max(1, A.shape[1]))
    return [slice(first, first + step) for first in range(0, A.shape[0], step)]


def check_finite(name: str, value: float) -> None:
    """Raise ValueError, naming the parameter, unless it is a finite number."""
    if not isfinite(value):
        raise ValueError(f"{name} must be a finite number")
