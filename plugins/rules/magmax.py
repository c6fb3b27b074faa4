"""MagMax: of each entry the value of the largest magnitude.

Source: arXiv 2407.06322, section 3.2; lambda = 0.5 is that of the released code for eight tasks.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ...state.records import Counts, SlotSpec, Weight
from ._reading import ReadsEntries, TimesLambda, check_finite
from .interface import Folded, Recurrence, Slots, Update


def larger(x: Tensor, y: Tensor) -> Tensor:
    """Return, entry by entry, x or y: what has the larger magnitude, of two equal ones the larger number."""
    return torch.where((x.abs() > y.abs()) | ((x.abs() == y.abs()) & (x > y)), x, y)


@dataclass(frozen=True)
class Largest(Recurrence):
    """The value of the largest magnitude. Neither the order nor the shares matter, but no checkpoint can be taken out."""

    ordered: ClassVar[bool] = False

    def slots(self, w: Weight) -> Mapping[str, SlotSpec]:
        """One slot in the weight's shape."""
        return {"largest": SlotSpec(w.shape)}

    def rowwise(self, w: Weight) -> bool:
        """Always."""
        return True

    def step(self, kept: Slots, u: Update, w: Weight, before: Counts, prepared: Slots) -> Folded:
        """Take the newcomer's value where it is the larger one."""
        return Folded({"largest": larger(u.delta.to(kept["largest"].dtype), kept["largest"])})


@dataclass(frozen=True)
class MagMax(TimesLambda, ReadsEntries):
    """Reads the values of the largest magnitude, times a constant."""

    source: ClassVar[str] = "MagMax, arXiv 2407.06322, section 3.2"

    lambda_: float = 0.5

    def __post_init__(self) -> None:
        check_finite("lambda", self.lambda_)

    @property
    def statistic(self) -> Largest:
        """Return the largest values."""
        return Largest()
