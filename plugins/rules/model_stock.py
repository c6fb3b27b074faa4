"""Model Stock: the mean of the task vectors, the closer to the base model the wider the angles between them are.

Source: arXiv 2403.19522, section 4: t = N cos / (1 + (N - 1) cos) of the way from the base model to the mean, with a cosine
for each weight. For more than two checkpoints the mean cosine of all pairs is taken, as mergekit does.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ...state.records import Counts, SlotSpec, Weight
from ._sums import norm, square
from .interface import ReadOut, Slots, Statistic, Sum, TaskSum, Update


def mean_cosine(U_square: float, own: float, N: float) -> float:
    """Return the mean cosine of all pairs of N task vectors: (||sum of tau / ||tau|| ||^2 - N) / (N (N - 1)).

    U_square: the squared norm of the sum of their directions; own: the sum of the squared norms of those. That is N but for
    rounding, which would be most of the difference where the cosines are small, and for zero task vectors: pairs with
    those have cosine 0.
    """
    return (U_square - own) / (N * (N - 1))


def interpolation_ratio(cos: float, N: float) -> float:
    """Return t, from 0 (the base model) to 1 (the mean); the paper's angles are at most 90 degrees, where t is 0."""
    return N * cos / (1 + (N - 1) * cos) if cos > 0 else 0.0


@dataclass(frozen=True)
class DirectionSum(Sum):
    """The sum of the directions of the task vectors, and that of their squared norms."""

    def slots(self, w: Weight) -> Mapping[str, SlotSpec]:
        """One slot in the weight's shape, and a number; float64, for a mean cosine near 0 is the difference of large numbers."""
        return {"directions": SlotSpec(w.shape, "F64"), "own": SlotSpec((), "F64")}

    def term(self, u: Update, w: Weight) -> Slots:
        """Return tau / ||tau||, which the whole weight is needed for."""
        length = norm(u.delta)
        delta = u.delta.double()
        direction = delta / length if length else torch.zeros_like(delta)
        return {"directions": direction, "own": torch.tensor(square(direction), dtype=torch.float64)}


@dataclass(frozen=True)
class ModelStock(ReadOut):
    """Reads the mean of the task vectors, shortened by the angles between them; it has no parameters."""

    source: ClassVar[str] = "Model Stock, arXiv 2403.19522, section 4; mergekit `model_stock` for more than two"

    def keeps(self, w: Weight) -> tuple[Statistic, ...]:
        """Return the sums of the task vectors and of their directions."""
        return (TaskSum(), DirectionSum())

    def merged(self, kept: Mapping[Statistic, Slots], w: Weight, counts: Counts) -> Tensor:
        """Return t x mean."""
        N = counts.shares
        total = kept[TaskSum()]["sum"]
        if N <= 1:  # there is no angle
            return total / (N or 1.0)
        sums = kept[DirectionSum()]
        cos = mean_cosine(square(sums["directions"]), float(sums["own"]), N)
        return total * (interpolation_ratio(min(cos, 1.0), N) / N)
