"""What a statistic may ask of the whole checkpoint before it is folded: norms, and what its largest numbers reach."""

from dataclasses import dataclass
from math import frexp, ldexp
from typing import ClassVar

import torch
from torch import Tensor

from ...state.records import Weight
from ._sums import square
from .interface import Slots

SHIFT = 15  # the bits of a float32 without its sign, in two halves: larger numbers have larger bits
HIGH, LOW = 2**16, 2**SHIFT


@dataclass(frozen=True)
class Norm:
    """The Frobenius norm of the whole task vector, in float64: "norm"."""

    passes: ClassVar[int] = 1

    def term(self, delta: Tensor, w: Weight, found: Slots) -> Slots:
        """Return the sum of squares."""
        return {"square": torch.tensor(square(delta), dtype=torch.float64)}

    def found(self, sums: Slots, found: Slots) -> Slots:
        """Return its root."""
        return {"norm": sums["square"].sqrt()}


@dataclass(frozen=True)
class Energy:
    """The mean square of each weight of the task vector, in float64, by the weight's name.

    To 24 bits, as a float32 has them: how its rows were cut into blocks, which the last bits of a sum tell, is not to show.
    """

    passes: ClassVar[int] = 1

    def term(self, delta: Tensor, w: Weight, found: Slots) -> Slots:
        """Return what a block adds to the mean square of its weight."""
        return {w.name: torch.tensor(square(delta) / max(w.size, 1), dtype=torch.float64)}

    def found(self, sums: Slots, found: Slots) -> Slots:
        """Return the sums, rounded."""
        return {name: torch.tensor(_rounded(float(energy)), dtype=torch.float64) for name, energy in sums.items()}


def _rounded(x: float) -> float:
    """Return a number to 24 bits."""
    mantissa, exponent = frexp(x)
    return ldexp(round(mantissa * 2**24), exponent - 24)


@dataclass(frozen=True)
class Magnitude:
    """The magnitude that the largest share `density` of all numbers reach, exactly, in float32: "least".

    Of n numbers these are floor(density n) + `more`, but one at least, and all where it is 1; and what equals the
    smallest of them.

    Numbers are counted by the high bits of their magnitude, and then, by the low bits, those that share the high bits of
    the one that is looked for: two passes and some 100,000 counters, whatever the model's size.
    """

    density: float
    more: int = 0
    passes: ClassVar[int] = 2

    def wanted(self, n: int) -> int:
        """Return how many of n numbers are to reach it."""
        return min(max(int(n * self.density) + self.more, 1), n) if self.density < 1 else n

    def term(self, delta: Tensor, w: Weight, found: Slots) -> Slots:
        """Return how many numbers have each high half; then, of those that matter, each low half."""
        bits = delta.reshape(-1).float().abs().view(torch.int32)
        if not found:
            return {"counts": torch.bincount(bits >> SHIFT, minlength=HIGH)}
        return {"counts": torch.bincount(bits[bits >> SHIFT == found["half"]] & (LOW - 1), minlength=LOW)}

    def found(self, sums: Slots, found: Slots) -> Slots:
        """Return the half that holds the number, and how many larger halves hold; then the number."""
        counts = sums["counts"]
        wanted = found["left"] if found else torch.tensor(self.wanted(int(counts.sum())))
        reached = counts.flip(0).cumsum(0)  # how many numbers are at least that large, from the largest on
        steps = int((reached < wanted).sum())
        place = counts.numel() - 1 - steps
        if found:
            bits = (found["half"] * LOW + place).to(torch.int32)
            return {"least": bits.reshape(1).view(torch.float32)[0]}
        return {"half": torch.tensor(place), "left": wanted - (reached[steps] - counts[place])}
