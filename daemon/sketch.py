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


class Sketch:
    """The sum over the weights of R D C: R (P, m) holds random signs, C (n, Q) one random sign in each row.

    D (m, n) is the task vector of one weight, a vector as one row, more than two dimensions with the last ones joined.
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
        self._sum += weight.of(block, rows)

    def tobytes(self) -> bytes:
        """Return it as float32, in the order of its rows."""
        return array("f", self._sum.flatten().tolist()).tobytes()


class Projection:
    """R and C of one weight."""

    def __init__(self, name: str, shape: tuple[int, ...]) -> None:
        self._flat = len(shape) < 2
        m, n = (1, prod(shape)) if self._flat else (shape[0], prod(shape[1:]))
        noise = torch.frombuffer(bytearray(hashlib.shake_256(name.encode()).digest(m + n)), dtype=torch.uint8)
        self._rows, columns = noise[:m], noise[m:]  # eight signs a row; a sign and one of 64 places a column
        self._places = (columns % Q).long()
        self._signs = (columns >= 2 * Q).float() * 2 - 1

    def of(self, block: Tensor | LowRank, rows: tuple[int, int] | None = None) -> Tensor:
        """Return the part of the sketch, (P, Q) in float64, that a block of rows of the weight makes up."""
        if isinstance(block, LowRank):
            return self._of_product(block, rows)
        first, last = rows or (0, None)
        at = slice(first, last)
        D = block.reshape(1, -1) if self._flat else block.flatten(1)
        signs, places = (self._signs[at], self._places[at]) if self._flat else (self._signs, self._places)
        R = _bits(self._rows if self._flat else self._rows[at]).to(D.dtype)
        return _gathered(R @ D, signs, places)

    def _of_product(self, block: LowRank, rows: tuple[int, int] | None) -> Tensor:
        """Return the same of a product, without forming it."""
        if not block.rank:
            return torch.zeros(P, Q, dtype=torch.float64)
        if block.B.ndim > 2:  # a batch of them
            return self.of(block.dense(), rows)
        R = _bits(self._rows[slice(*rows)] if rows else self._rows).to(block.B.dtype)
        return _gathered(R @ block.B @ block.A, self._signs, self._places)


def _bits(rows: Tensor) -> Tensor:
    """Return the signs (P, m) that the eight bits of each of m bytes stand for."""
    return ((rows.unsqueeze(0) >> torch.arange(P, dtype=torch.uint8).unsqueeze(1)) & 1).float() * 2 - 1


def _gathered(projected: Tensor, signs: Tensor, places: Tensor) -> Tensor:
    """Return (P, n) @ C as (P, Q), in float64."""
    return torch.zeros(P, Q, dtype=torch.float64).index_add_(1, places, (projected * signs).double())


def inner_product(one: bytes, other: bytes) -> float:
    """Return the estimate of <x, y> from two sketches."""
    return float(_read(one) @ _read(other)) / P


def cosines(one: bytes, others: Sequence[bytes]) -> tuple[float, ...]:
    """Return the cosine of a sketch with each of some others: the estimate of the task vectors'; 0 where one is zero."""
    if not others:
        return ()
    mine, theirs = _read(one), torch.stack([_read(other) for other in others])
    norms = theirs.norm(dim=1) * mine.norm()
    return tuple(torch.where(norms > 0, theirs @ mine / norms, 0.0).tolist())


def _read(sketch: bytes) -> Tensor:
    return torch.frombuffer(bytearray(sketch), dtype=torch.float32).double()
