"""The sketch of a task vector: a few kilobytes, linear in it, from which its cosine with another one is estimated."""

import hashlib
from array import array
from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from ..plugins.rules.interface import LowRank

P = 8  # rows of a sketch
Q = 64  # columns
CHUNK = 2**16  # columns of a weight at a time


class Sketch:
    """The sum over the weights of R D C: R (P, m) holds random signs, C (n, Q) one random sign in each row.

    D (m, n) is the task vector of one weight, a vector as one row, more than two dimensions joined to few rows and columns.
    R and C follow from the weight's name alone, so that blocks of rows add up, and two sketches can be compared
    whenever they were made. For task vectors x and y with sketches s and t, <s, t> / P estimates <x, y>:
    it is right in the mean, and its variance is at most

        (2/P + 2/Q + 4/(P Q)) sum_w |x_w|^2 |y_w|^2  +  (|x|^2 |y|^2 + <x, y>^2) / (P Q)

    over the choice of signs, w being the weights. So the error has a standard deviation of at most 0.09 |x| |y| where
    a hundred weights of like norm or more share the task vectors, and of 0.55 |x| |y| where one has all of both, which
    only matrices of rank one come near. The sketches of x and of c x have the cosine 1 whatever the signs.
    """

    def __init__(self) -> None:
        self._sum = torch.zeros(P, Q, dtype=torch.float64)

    def add(self, weight: "Projection", block: Tensor | LowRank, rows: tuple[int, int] | None = None) -> None:
        """Add the task vector of one weight, or of its rows `rows[0]` to `rows[1]` (exclusive)."""
        self.add_part(weight.of(block, rows))

    def add_part(self, part: Tensor) -> None:
        """Add what a projection made of one block."""
        self._sum += part

    def tobytes(self) -> bytes:
        """Return it as float32, in the order of its rows."""
        return array("f", self._sum.flatten().tolist()).tobytes()


class Projection:
    """R and C of one weight: a byte for each row, which holds its eight signs, and one for each column."""

    def __init__(self, name: str, shape: tuple[int, ...]) -> None:
        m, n = as_matrix(shape)
        noise = torch.frombuffer(bytearray(hashlib.shake_256(name.encode()).digest(m + n)), dtype=torch.uint8)
        self._flat, self._rows, self._columns = len(shape) < 2, noise[:m], noise[m:]
        self._rows_in_one = m // shape[0] if len(shape) > 1 and shape[0] else 1

    def of(self, block: Tensor | LowRank, rows: tuple[int, int] | None = None) -> Tensor:
        """Return the part of the sketch, (P, Q) in float64, that a block of rows of the weight makes up."""
        if isinstance(block, LowRank) and not block.rank:
            return torch.zeros(P, Q, dtype=torch.float64)
        signs, columns = self._rows, self._columns
        if rows and self._flat:
            columns = columns[slice(*rows)]
        elif rows:
            signs = signs[slice(*(self._rows_in_one * row for row in rows))]
        if isinstance(block, LowRank):
            if block.B.ndim == 2 and (len(block.B), block.A.shape[1]) == (len(signs), len(columns)):
                return _gathered(_bits(signs).to(block.B.dtype) @ block.B, block.A, columns)
            block = block.dense()  # its dimensions are joined otherwise
        return _gathered(_bits(signs).to(block.dtype), block.reshape(len(signs), len(columns)), columns)


def as_matrix(shape: tuple[int, ...]) -> tuple[int, int]:
    """Return the rows and columns of a weight, its dimensions joined so that they are few; a vector is one row."""
    if len(shape) < 2:
        return 1, prod(shape)
    return min(((prod(shape[:cut]), prod(shape[cut:])) for cut in range(1, len(shape))), key=sum)


def _bits(rows: Tensor) -> Tensor:
    """Return the signs (P, m) that the eight bits of each of m bytes stand for."""
    return ((rows.unsqueeze(0) >> torch.arange(P, dtype=torch.uint8).unsqueeze(1)) & 1).float() * 2 - 1


def _gathered(left: Tensor, right: Tensor, columns: Tensor) -> Tensor:
    """Return left (P, m) @ right (m, n) @ C as (P, Q), in float64; a column's byte is a sign and one of 64 places."""
    total = torch.zeros(P, Q, dtype=torch.float64)
    for start in range(0, len(columns), CHUNK):
        bits = columns[start : start + CHUNK]
        projected = (left @ right[:, start : start + CHUNK]) * ((bits >= 2 * Q).to(left.dtype) * 2 - 1)
        total.index_add_(1, (bits % Q).long(), projected.double())
    return total


def inner_product(one: bytes, other: bytes) -> float:
    """Return the estimate of <x, y> from two sketches."""
    return float(_read(one) @ _read(other)) / P


def cosines(one: bytes, others: Sequence[bytes]) -> tuple[float, ...]:
    """Return the cosine of a sketch with each of some others: the estimate of the task vectors'; 0 where one is zero."""
    mine = _read(one)
    return tuple(_cosine(mine, _read(other)) for other in others)  # one after another: a thousand together take memory


def _cosine(mine: Tensor, theirs: Tensor) -> float:
    norms = float(mine.norm() * theirs.norm())
    return float(mine @ theirs) / norms if norms > 0 else 0.0


def _read(sketch: bytes) -> Tensor:
    return torch.frombuffer(bytearray(sketch), dtype=torch.float32).double()
