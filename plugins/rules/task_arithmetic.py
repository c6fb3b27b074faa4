"""Task arithmetic: published = base + lambda x sum of task vectors. Source: arXiv 2212.04089, section 2."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite

from torch import Tensor

from ...state.records import Counts, Totals, Weight
from .interface import Slots, Statistic, TaskSum


@dataclass(frozen=True)
class TaskArithmetic:
    """Reads the sum of the task vectors, times a constant."""

    scaling: float = 0.3  # lambda; 0.3 is the paper's for eight vision tasks

    def __post_init__(self) -> None:
        if not isfinite(self.scaling):
            raise ValueError("scaling must be a finite number")

    def keeps(self, w: Weight) -> tuple[Statistic, ...]:
        """Return the sum of the task vectors, for every weight."""
        return (TaskSum(),)

    def rowwise(self, w: Weight) -> bool:
        """Always: the read-out is the slot."""
        return True

    def merged(self, kept: Mapping[Statistic, Slots], w: Weight, counts: Counts) -> Tensor:
        """Return the sum; lambda is the scale."""
        return kept[TaskSum()]["sum"]

    def scale(self, totals: Totals) -> float:
        """Return lambda."""
        return self.scaling
