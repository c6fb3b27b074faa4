"""Fisher merging: the mean of the task vectors, each entry weighed by how much its checkpoint knows of it.

Source: arXiv 2111.09832, equation 4, with diagonal Fisher information F that is shipped beside the checkpoint; an
optimiser's second moment is one.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ...state.records import Counts, SlotSpec, Weight
from .interface import ReadOut, Slots, Statistic, Sum, TaskSum, Update

LEAST = 1e-37  # below this a float32 loses digits


def fisher_mean(F_tau: Tensor, F: Tensor, mean: Tensor) -> Tensor:
    """Return sum F tau / sum F, and the plain mean where no checkpoint has any F."""
    return torch.where(F > LEAST, F_tau / F, mean)


@dataclass(frozen=True)
class FisherSum(Sum):
    """The sums of F and of F tau."""

    needs: ClassVar[frozenset[str]] = frozenset({"fisher"})

    def slots(self, w: Weight) -> Mapping[str, SlotSpec]:
        """Two slots in the weight's shape."""
        return {"fisher": SlotSpec(w.shape), "weighted": SlotSpec(w.shape)}

    def rowwise(self, w: Weight) -> bool:
        """Always."""
        return True

    def term(self, u: Update, w: Weight) -> Slots:
        """Return F and F tau."""
        F = u.extra["fisher"]
        return {"fisher": F, "weighted": F * u.delta}


@dataclass(frozen=True)
class Fisher(ReadOut):
    """Reads the mean of the task vectors, weighed entry by entry by Fisher information; it has no parameters."""

    source: ClassVar[str] = "Fisher merging, arXiv 2111.09832, equation 4"

    def keeps(self, w: Weight) -> tuple[Statistic, ...]:
        """Return the weighed sums, and the plain one for entries of which nothing is known."""
        return (FisherSum(), TaskSum())

    def rowwise(self, w: Weight) -> bool:
        """Always."""
        return True

    def merged(self, kept: Mapping[Statistic, Slots], w: Weight, counts: Counts) -> Tensor:
        """Return the weighed mean."""
        sums = kept[FisherSum()]
        return fisher_mean(sums["weighted"], sums["fisher"], kept[TaskSum()]["sum"] / (counts.shares or 1.0))
