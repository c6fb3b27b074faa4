"""The running average: published = base + (sum of share x task vector) / (sum of shares).

Source: model soups, arXiv 2203.05482 (uniform soup); stochastic weight averaging, arXiv 1803.05407.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from ...state.records import Counts, Totals, Weight
from .interface import Slots, Statistic, TaskSum


@dataclass(frozen=True)
class Average:
    """Reads the mean of the task vectors; it has no parameters."""

    def keeps(self, w: Weight) -> tuple[Statistic, ...]:
        """Return the sum of the task vectors, for every weight."""
        return (TaskSum(),)

    def rowwise(self, w: Weight) -> bool:
        """Always: the read-out is the slot."""
        return True

    def merged(self, kept: Mapping[Statistic, Slots], w: Weight, counts: Counts) -> Tensor:
        """Return the sum; the division is the scale."""
        return kept[TaskSum()]["sum"]

    def scale(self, totals: Totals) -> float:
        """Return 1 / (sum of shares)."""
        return 1.0 / totals.shares if totals.shares else 1.0
