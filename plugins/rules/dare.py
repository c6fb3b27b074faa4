"""DARE with task arithmetic: of each task vector a random part is kept, and rescaled.

Source: arXiv 2311.03099, section 3.1: drop with probability p, divide what is left by 1 - p; mergekit's density is 1 - p.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from typing import ClassVar

from torch import Tensor

from ...state.records import SlotSpec, Weight
from ._random import CHUNK, DRAWS, draws
from ._reading import ReadsEntries, TimesLambda, check_density, check_finite
from .interface import Slots, Sum, Update


def dropped_and_rescaled(tau: Tensor, density: float, seed: int, start: int) -> Tensor:
    """Return tau / density where the entry's draw lies below the density, and 0 elsewhere.

    tau: any shape, its first entry at the place `start` of the weight.
    """
    flat = (tau / density).reshape(-1)
    below = ceil(density * DRAWS)
    for first in range(0, flat.numel(), CHUNK):
        chunk = flat[first : first + CHUNK]
        chunk.masked_fill_(draws(seed, start + first, chunk.numel(), chunk.device) >= below, 0.0)
    return flat.reshape(tau.shape)


@dataclass(frozen=True)
class DroppedSum(Sum):
    """The sum of what DARE leaves of each task vector."""

    density: float
    needs: ClassVar[frozenset[str]] = frozenset({"seed"})

    def slots(self, w: Weight) -> Mapping[str, SlotSpec]:
        """One slot in the weight's shape."""
        return {"sum": SlotSpec(w.shape)}

    def rowwise(self, w: Weight) -> bool:
        """Always: a draw belongs to its place in the weight."""
        return True

    def term(self, u: Update, w: Weight) -> Slots:
        """Return what is left of the task vector."""
        return {"sum": dropped_and_rescaled(u.delta, self.density, u.seed, u.start)}


@dataclass(frozen=True)
class Dare(TimesLambda, ReadsEntries):
    """Reads the sum of randomly thinned task vectors, times a constant.

    What is kept of a weight follows from its name and bytes alone: a checkpoint is thinned in the same way at any time.
    """

    source: ClassVar[str] = "DARE, arXiv 2311.03099, section 3.1; lambda as in task arithmetic, arXiv 2212.04089"

    density: float = 0.1  # the share of entries that is kept: 1 - p
    lambda_: float = 0.3

    def __post_init__(self) -> None:
        check_density(self.density)
        check_finite("lambda", self.lambda_)

    @property
    def statistic(self) -> DroppedSum:
        """Return the thinned sum."""
        return DroppedSum(self.density)
