"""Two-sided Gram regression: the mean of what the inputs' and the outputs' Gram matrices ask of the merged matrix.

Source: a rule of this project. The input side is WUDI's closed form (arXiv 2503.08099) with a ridge.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, get_args

import torch
from torch import Tensor

from ...state.records import Counts, Weight
from ._gram import Gram, Pull
from ._matrices import MergesMatrices, sides
from ._spectral import ridge
from .interface import Others, Slots, Statistic, check_between, check_one_of

IN, OUT = Gram("in"), Gram("out")


@dataclass(frozen=True)
class TwoSidedGram(MergesMatrices):
    """Averages M_in = B (G_in + e I)^-1 and M_out = (G_out + e I)^-1 B, e being epsilon x the mean eigenvalue.

    A matrix whose long side is more than `long_side` times its short side keeps the short side's Gram matrix alone, and
    is read from it. A checkpoint that does not change a matrix has no say in it.
    """

    source: ClassVar[str] = "a rule of mergd; the input side is the closed form of WUDI, arXiv 2503.08099"

    epsilon: float = 0.1
    long_side: float = 4.0
    others: Others = "mean"

    def __post_init__(self) -> None:
        check_between("epsilon", self.epsilon, 1e-6, 1e6)
        check_between("long_side", self.long_side, 1, 1e9)
        check_one_of("others", self.others, get_args(Others))

    def of_matrix(self, w: Weight) -> tuple[Statistic, ...]:
        """Return B, and the Gram matrix of each side that is not too long."""
        _, m, n = sides(w)
        both = max(m, n) <= self.long_side * min(m, n)
        return (Pull(), *((IN,) if both or n <= m else ()), *((OUT,) if both or m < n else ()))

    def matrix(self, kept: Mapping[Statistic, Slots], counts: Counts) -> Tensor:
        """Return the mean of the sides that are there."""
        B = kept[Pull()]["pull"]
        if not B.any():
            return B
        found = [ridge(B, kept[IN]["gram"], self.epsilon)] if IN in kept else []
        found += [ridge(B.T, kept[OUT]["gram"], self.epsilon).T] if OUT in kept else []
        return torch.stack(found).mean(0)
