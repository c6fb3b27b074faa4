"""DELLA-Merging: drop entries at random, the smaller the likelier, rescale, elect a sign, average what has it.

Source: arXiv 2406.11617, section 3 (MagPrune), its code, and mergekit's `della`; the defaults are the drop rate 0.3, the
window 0.14 (twice epsilon) and the lambda 1.1 of the authors' README.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ...state.records import Counts, Weight
from ._masses import Masses, disjoint_mean
from ._random import DRAWS, draws
from ._reading import ReadsEntries, TimesLambda, check_density, check_finite
from .interface import Slots, Statistic, Update

NUMBERS = 2**20  # at a time: what ranks them takes some tens of bytes for each


def keep_probability(rows: Tensor, density: float, epsilon: float) -> Tensor:
    """Return how likely each entry is kept: density - epsilon for the smallest of its row, up to density + epsilon.

    rows: (m, n); the probability grows linearly with the magnitude's rank in the row, and equal magnitudes rank by their
    place. An entry that is alone in its row has the density.
    """
    n = rows.shape[1]
    rank = rows.abs().argsort(dim=1, stable=True).argsort(dim=1)  # (m, n), from 0
    return (
        density + epsilon * (2.0 * rank.double() / (n - 1) - 1.0) if n > 1 else torch.full_like(rows, density).double()
    )


def magprune(rows: Tensor, density: float, epsilon: float, seed: int, start: int) -> Tensor:
    """Return each entry divided by its probability p where its draw lies below p, and 0 elsewhere.

    rows: (m, n), the first entry at the place `start` of the weight.
    """
    p = keep_probability(rows, density, epsilon)  # (m, n) float64
    kept = draws(seed, start, rows.numel(), rows.device).reshape(rows.shape).double() < p * DRAWS
    return torch.where(kept, rows / p, 0.0).to(rows.dtype)


def rows_of(tau: Tensor, w: Weight) -> Tensor:
    """Return the rows in which magnitudes are ranked: of each matrix, of a convolution (m, ...), or the one of a vector."""
    if tau.ndim < 2:
        return tau.reshape(1, -1)
    return (
        tau.flatten(0, -2) if w.kind in ("matrix", "lookup") else tau.flatten(1)
    )  # a summed convolution is among the others


@dataclass(frozen=True)
class PrunedMasses(Masses):
    """The masses of what MagPrune leaves of each task vector."""

    density: float
    epsilon: float
    needs: ClassVar[frozenset[str]] = frozenset({"seed"})

    def rowwise(self, w: Weight) -> bool:
        """Where there are rows: of a vector, the whole is ranked."""
        return len(w.shape) > 1

    def kept_of(self, u: Update, w: Weight) -> Tensor:
        """Return what is left of the task vector, some rows at a time."""
        rows = rows_of(u.delta, w)
        left = torch.zeros_like(rows)
        some = max(NUMBERS // max(rows.shape[1], 1), 1)
        for first in range(0, rows.shape[0], some):
            block = rows[first : first + some]
            place = u.start + first * rows.shape[1]
            left[first : first + some] = magprune(block, self.density, self.epsilon, u.seed, place)
        return left.reshape(u.delta.shape)


@dataclass(frozen=True)
class Della(TimesLambda, ReadsEntries):
    """Reads, of randomly thinned task vectors, the mean of the entries that have the elected sign, times a constant.

    What is kept of a weight follows from its name and bytes alone: a checkpoint is thinned in the same way at any time.
    """

    source: ClassVar[str] = "DELLA-Merging, arXiv 2406.11617, section 3; mergekit `della`"

    density: float = 0.7  # the share of entries that is kept
    epsilon: float = 0.07  # how much likelier than that the largest of a row is kept, and less likely the smallest
    lambda_: float = 1.1

    def __post_init__(self) -> None:
        check_density(self.density)
        if not 0 <= self.epsilon < self.density or self.density + self.epsilon > 1:
            raise ValueError("epsilon must be 0 or more, below density, and at most 1 - density")
        check_finite("lambda", self.lambda_)

    @property
    def statistic(self) -> PrunedMasses:
        """Return the masses of the thinned task vectors."""
        return PrunedMasses(self.density, self.epsilon)

    def merged(self, kept: Mapping[Statistic, Slots], w: Weight, counts: Counts) -> Tensor:
        """Return the disjoint mean."""
        return disjoint_mean(kept[self.statistic], counts)
