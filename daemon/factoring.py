"""A matrix in its leading singular directions, as two factors, with bounded memory."""

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from ..plugins.rules._sums import square
from ..state.records import Weight
from .vectors import MergedVector

CHUNK_ROWS = 1024  # rows that are in float64 at a time
SMALL = 512  # a Gram matrix of this side is decomposed whole
DEPTH = 12  # products with the Gram matrix between two looks at what was found
ROUNDS = 40  # such looks; then it is decomposed whole after all
TOLERANCE = 1e-10  # of an eigenvector: norm(G x - lambda x) over the largest eigenvalue


def factors(vector: MergedVector, w: Weight, rank: int, memory: int) -> tuple[Tensor, Tensor, float]:
    """Return left (m, r) and right (r, n), whose product is the matrix in its r leading directions; and its square.

    The directions are eigenvectors of the float64 Gram matrix of the short side: D Q Q^T needs no singular values, so
    that squaring them costs nothing. A wide matrix is held whole; a tall one streams by.
    """
    m, n = w.shape
    long, Q = leading(lambda: _tall(vector, w, memory), min(m, n), rank)
    root = long.norm(dim=0).sqrt()  # shared between both factors
    inverse = torch.where(root > 0, 1 / root, torch.zeros_like(root))
    left, right = (long * inverse, (Q * root).T) if m >= n else (Q * root, (long * inverse).T)
    return left, right, square(long)


def leading(tall: Callable[[], Iterable[Tensor]], short: int, rank: int) -> tuple[Tensor, Tensor]:
    """Return D Q (long, r) and Q (short, r), float64, for the r leading right singular directions Q of D (long, short).

    tall: yields D in blocks of rows, each time anew.
    """
    gram = torch.zeros(short, short, dtype=torch.float64)
    for rows in tall():
        gram.addmm_(rows.T, rows)
    Q = eigenvectors(gram, min(rank, short))
    return torch.cat([rows @ Q for rows in tall()]), Q


def eigenvectors(gram: Tensor, r: int) -> Tensor:
    """Return the r leading eigenvectors (n, r) of a Gram matrix (n, n), the largest first.

    Where r is a small part of n by block Krylov iteration with restarts (Golub and Van Loan, "Matrix Computations",
    10.3.7): it looks for half as many more, and is done once each of the r has converged.
    """
    n, b = gram.shape[0], r + max(8, r // 2)
    if n > SMALL and DEPTH * b < n // 2:
        X: Tensor = torch.randn(n, b, generator=torch.Generator().manual_seed(n), dtype=gram.dtype)
        for _ in range(ROUNDS):
            V = _krylov(gram, X)
            GV = gram @ V
            values, U = torch.linalg.eigh(V.T @ GV)  # ascending
            values, U = values.flip(0)[:b], U.flip(1)[:, :b]
            X = (V @ U).contiguous()
            rest = (GV @ U[:, :r] - X[:, :r] * values[:r]).norm(dim=0)
            if float(rest.max()) <= TOLERANCE * float(values[0]):
                return X[:, :r]
    _, whole = torch.linalg.eigh(gram)
    leading_ones: Tensor = whole.flip(1)[:, :r]
    return leading_ones


def _krylov(G: Tensor, X: Tensor) -> Tensor:
    """Return an orthonormal basis (n, DEPTH b) of X, G X, G^2 X and so on."""
    blocks = [torch.linalg.qr(X)[0]]
    for _ in range(DEPTH - 1):
        Y = G @ blocks[-1]
        for _ in range(2):  # once leaves what rounding put back
            Y, _ = torch.linalg.qr(Y)
            for block in blocks:
                Y = Y - block @ (block.T @ Y)
        blocks.append(torch.linalg.qr(Y)[0])
    return torch.cat(blocks, 1)


def _tall(vector: MergedVector, w: Weight, memory: int) -> Iterator[Tensor]:
    """Yield a matrix, standing upright, in blocks of rows, float64."""
    upright = w.shape[0] >= w.shape[1]
    for rows in vector.blocks(w, memory) if upright else [None]:
        block = vector.read(w, rows)
        for chunk in torch.split(block if upright else block.T, CHUNK_ROWS):
            yield chunk.double()


def padded(factor: Tensor, dim: int, rank: int) -> Tensor:
    """Return a factor of a matrix that has fewer directions than the rank: the others are zero."""
    shape = list(factor.shape)
    shape[dim] = rank - shape[dim]
    return torch.cat([factor, factor.new_zeros(shape)], dim)
