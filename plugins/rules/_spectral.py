"""Singular directions, polar factors and ridge solutions of one matrix, in float64 by the short side's Gram matrix.

The eigenvectors of a Gram matrix take a fraction of the time of a singular value decomposition. It squares the singular
values: those under RANK_TOLERANCE of the largest, which would lose accuracy, are left out wherever they would matter.
"""

import torch
from torch import Tensor

from .interface import LowRank

# Directions under this share of the largest singular value are the rounding of task vectors, or of no weight. Whatever
# makes all directions count alike would blow them up.
RANK_TOLERANCE = 1e-5


def thin_svd(X: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return U (m, r), S (r,), V (n, r), float64: the singular triplets of X (m, n) above the tolerance, descending."""
    tall = (X if X.shape[0] >= X.shape[1] else X.T).double()  # (long, short)
    squares, Q = torch.linalg.eigh(tall.T @ tall)  # ascending
    S = squares.flip(0).clamp(min=0).sqrt()
    S = S[RANK_TOLERANCE * S[:1].sum() < S]
    short = Q.flip(1)[:, : len(S)]
    long = tall @ short / S
    return (long, S, short) if X.shape[0] >= X.shape[1] else (short, S, long)


def thin_svd_of(D: Tensor | LowRank) -> tuple[Tensor, Tensor, Tensor]:
    """Return the same of a task vector; of two factors, at their cost: B A = Q_B (R_B R_A^T) Q_A^T."""
    if isinstance(D, Tensor):
        return thin_svd(D)
    Q_B, R_B = torch.linalg.qr(D.B.double())
    Q_A, R_A = torch.linalg.qr(D.A.double().T)
    U, S, V = thin_svd(R_B @ R_A.T)
    return Q_B @ U, S, Q_A @ V


def polar(X: Tensor) -> Tensor:
    """Return the nearest matrix with orthonormal columns, X (X^T X)^-1/2, in float64; X is (m, k).

    Singular values are floored at the tolerance: where columns nearly coincide, what tells them apart is noise.
    """
    X = X.double()
    squares, Q = torch.linalg.eigh(X.T @ X)
    S = squares.clamp(min=0).sqrt()
    factor: Tensor = X @ Q / S.clamp(min=RANK_TOLERANCE * float(S[-1])) @ Q.T
    return factor


def ridge(B: Tensor, G: Tensor, epsilon: float) -> Tensor:
    """Return B (G + e I)^-1 with e = epsilon x the mean eigenvalue of G; B is (m, n), G (n, n) and not zero."""
    e = epsilon * G.trace() / len(G)
    solved: Tensor = torch.linalg.solve(G + e * torch.eye(len(G), dtype=G.dtype, device=G.device), B, left=False)
    return solved


def flattened(X: Tensor, power: float) -> Tensor:
    """Return U S^power V^T for X = U S V^T, at the norm of X, in float64; a power of 0 makes all directions count alike."""
    U, S, V = thin_svd(X)
    flat = S**power
    flat_X: Tensor = U * (flat * (S.norm() / flat.norm())) @ V.T
    return flat_X
