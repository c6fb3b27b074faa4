"""Two-sided Gram regression, its spectrum flattened: what the inputs' and the outputs' Gram matrices ask of the merged matrix.

Source: a rule of this project. Each checkpoint's task vector tau is what the merged matrix M should do, on the inputs that it was
trained on, and towards the outputs that it changed. tau is a sum of products of output gradients and inputs: tau^T tau tells of the
inputs, tau tau^T of the outputs, without any data. The least of sum ||(M - tau) tau^T||^2 / ||tau||^2 + e ||M||^2 is the input side,
M_in = B (G_in + e I)^-1 (WUDI's closed form, arXiv 2503.08099, with a ridge); of the transposed it is the output side.

Where T checkpoints share directions, both average there, and what is left of each is weak beside the few directions that one
checkpoint alone is strong in: these disturb all the others most. So the singular values s of the mean become s^(1 / T^flatten), at the
same norm: one checkpoint keeps its own, and of very many all directions count alike, as in Iso-C (arXiv 2502.04959). `lambda`
gives back some of what averaging and the ridge took.
docs/quality.md has what that is worth.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, get_args

import torch
from torch import Tensor

from ...state.records import Counts, Totals, Weight
from ._gram import Gram, Pull
from ._matrices import MergesMatrices, sides
from ._spectral import flattened, ridge
from .interface import Others, Slots, Statistic, check_between, check_one_of

IN, OUT = Gram("in"), Gram("out")


@dataclass(frozen=True)
class TwoSidedGram(MergesMatrices):
    """Averages M_in = B (G_in + e I)^-1 and M_out = (G_out + e I)^-1 B, and flattens what comes of it.

    e is epsilon x the mean eigenvalue. Of T checkpoints the singular values s become s^(1 / T^flatten), at the same norm.
    A matrix whose long side is more than `long_side` times its short side keeps the short side's Gram matrix alone, and
    is read from it. A checkpoint that does not change a matrix has no say in it.
    """

    source: ClassVar[str] = "a rule of mergd; the input side is the closed form of WUDI, arXiv 2503.08099"

    epsilon: float = 0.1
    long_side: float = 4.0
    flatten: float = 0.5
    lambda_: float = 1.15
    others: Others = "mean"

    def __post_init__(self) -> None:
        check_between("epsilon", self.epsilon, 1e-6, 1e6)
        check_between("long_side", self.long_side, 1, 1e9)
        check_between("flatten", self.flatten, 0, 10)
        check_between("lambda", self.lambda_, -1e6, 1e6)
        check_one_of("others", self.others, get_args(Others))

    def of_matrix(self, w: Weight) -> tuple[Statistic, ...]:
        """Return B, and the Gram matrix of each side that is not too long."""
        _, m, n = sides(w)
        both = max(m, n) <= self.long_side * min(m, n)
        return (Pull(), *((IN,) if both or n <= m else ()), *((OUT,) if both or m < n else ()))

    def matrix(self, kept: Mapping[Statistic, Slots], counts: Counts) -> Tensor:
        """Return the mean of the sides that are there, its spectrum flattened."""
        B = kept[Pull()]["pull"]
        if not B.any():
            return B
        grams = [kept[side]["gram"] for side in (IN, OUT) if side in kept]
        found = [ridge(B, kept[IN]["gram"], self.epsilon)] if IN in kept else []
        found += [ridge(B.T, kept[OUT]["gram"], self.epsilon).T] if OUT in kept else []
        M = torch.stack(found).mean(0)
        T = max(float(grams[0].trace()), 1.0)  # the shares of those that changed this matrix
        return flattened(M, T**-self.flatten) if self.flatten else M

    def scale(self, totals: Totals) -> float:
        """Return lambda, but for a checkpoint by itself: nothing was averaged."""
        return self.lambda_ if totals.folded > 1 else 1.0
