"""What a statistic may ask of the whole checkpoint before it is folded: its norm, the magnitude that its largest numbers reach."""

from dataclasses import dataclass
from math import inf
from typing import ClassVar

import torch
from torch import Tensor

from ...state.records import Weight
from ._sums import square
from .interface import Slots

HIGH, LOW = 2**16, 2**15  # the bits of a float32 without its sign, in two halves: larger numbers have larger bits


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
class Magnitude:
    """The magnitude that the largest share `density` of all numbers reach, exactly, in float32: "least".

    Numbers are counted by the high bits of their magnitude, and then, by the low bits, those that share the high bits of
    the one that is looked for: two passes and some 100,000 counters, whatever the model's size.
    """

    density: float
    passes: ClassVar[int] = 2

    def term(self, delta: Tensor, w: Weight, found: Slots) -> Slots:
        """Return how many numbers have each high half; then, of those that matter, each low half."""
        bits = delta.reshape(-1).float().abs().view(torch.int32)
        if not found:
            return {"counts": torch.bincount(bits // LOW, minlength=HIGH)}
        return {"counts": torch.bincount(bits[bits // LOW == found["half"]] % LOW, minlength=LOW)}

    def found(self, sums: Slots, found: Slots) -> Slots:
        """Return the half that holds the number, and how many larger halves hold; then the number."""
        counts = sums["counts"]
        wanted = found["left"] if found else (counts.sum() * self.density).long()
        if not found and wanted == 0:
            return {"half": torch.tensor(-1), "left": wanted}
        if wanted == 0:
            return {"least": torch.tensor(inf)}
        reached = counts.flip(0).cumsum(0)  # how many numbers are at least that large, from the largest on
        steps = int((reached < wanted).sum())
        place = counts.numel() - 1 - steps
        if found:
            bits = (found["half"] * LOW + place).to(torch.int32)
            return {"least": bits.reshape(1).view(torch.float32)[0]}
        return {"half": torch.tensor(place), "left": wanted - (reached[steps] - counts[place])}
