"""Localize-and-Stitch without data: each checkpoint's largest entries, averaged where they overlap.

Source: arXiv 2408.13656, section 4 (dataless), and its code; 0.05 is what the code keeps for language models.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ...state.records import Counts, SlotSpec, Weight
from ._masses import NOBODY, quotient
from ._reading import ReadsEntries, check_density
from .interface import Slots, Statistic, Sum, Survey, Update
from .surveys import Magnitude


@dataclass(frozen=True)
class LocalizedSum(Sum):
    """The sum of the largest entries of each task vector, and of the shares that each entry has."""

    density: float

    @property
    def surveys(self) -> tuple[Survey, ...]:
        """What the largest numbers of the whole checkpoint reach."""
        return (self._survey,)

    @property
    def _survey(self) -> Magnitude:
        """The authors keep what is larger than the floor(density n)-th number: one less than the density says."""
        return Magnitude(self.density, more=-1)

    def slots(self, w: Weight) -> Mapping[str, SlotSpec]:
        """Two slots in the weight's shape."""
        return {"sum": SlotSpec(w.shape), "shares": SlotSpec(w.shape)}

    def rowwise(self, w: Weight) -> bool:
        """Always: the threshold is known beforehand."""
        return True

    def term(self, u: Update, w: Weight) -> Slots:
        """Return the entries that are kept, and a one for each; what is not changed is none, however few there are."""
        mask = (u.delta.abs() >= u.whole[self._survey]["least"]) & (u.delta != 0)
        return {"sum": torch.where(mask, u.delta, 0.0), "shares": mask}


@dataclass(frozen=True)
class Stitch(ReadsEntries):
    """Reads the mean of the task vectors' largest entries, over the checkpoints that have such an entry."""

    source: ClassVar[str] = "Localize-and-Stitch, arXiv 2408.13656, section 4 (dataless)"

    density: float = 0.05  # the share of entries, the largest of the whole task vector, that is kept

    def __post_init__(self) -> None:
        check_density(self.density)

    @property
    def statistic(self) -> LocalizedSum:
        """Return the sums of what is kept."""
        return LocalizedSum(self.density)

    def merged(self, kept: Mapping[Statistic, Slots], w: Weight, counts: Counts) -> Tensor:
        """Return the mean of what is kept."""
        sums = kept[self.statistic]
        return quotient(sums["sum"], sums["shares"], NOBODY * counts.shares)
