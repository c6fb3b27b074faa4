"""Model Breadcrumbs: of each task vector the smallest and the very largest entries are left out.

Source: arXiv 2312.06795, section 3.1; the parameters are mergekit's (`breadcrumbs`): gamma of the entries, the largest, go,
and so many of the smallest that the share `density` is left.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ...state.records import SlotSpec, Weight
from ._reading import ReadsEntries, TimesLambda, check_density, check_finite
from .interface import Slots, Sum, Update


def middling(tau: Tensor, density: float, gamma: float) -> Tensor:
    """Return tau with its smallest and largest entries zeroed.

    tau: any shape, of n entries. The floor(gamma n) largest go, and of the smallest as many as leave floor(density n);
    what is as large as the smallest or the largest entry that stays, stays too, so that no order of the entries matters.
    """
    n = tau.numel()
    top = int(gamma * n)
    bottom = n - int(density * n) - top
    if bottom < 0:  # fewer of the largest go then
        top, bottom = max(top + bottom, 0), 0
    if not top and not bottom:
        return tau
    magnitudes = tau.abs().reshape(-1)
    last = n - 1 - top
    low = magnitudes.kthvalue(min(bottom, last) + 1).values
    high = magnitudes.kthvalue(last + 1).values
    magnitudes = magnitudes.reshape(tau.shape)
    return torch.where((magnitudes >= low) & (magnitudes <= high), tau, 0.0)


@dataclass(frozen=True)
class MiddlingSum(Sum):
    """The sum of the entries of middling magnitude of each task vector."""

    density: float
    gamma: float

    def slots(self, w: Weight) -> Mapping[str, SlotSpec]:
        """One slot in the weight's shape."""
        return {"sum": SlotSpec(w.shape)}

    def term(self, u: Update, w: Weight) -> Slots:
        """Return the entries of middling magnitude; the weight must be whole, to know them."""
        return {"sum": middling(u.delta, self.density, self.gamma)}


@dataclass(frozen=True)
class Breadcrumbs(TimesLambda, ReadsEntries):
    """Reads the sum of task vectors without their smallest and largest entries, times a constant."""

    source: ClassVar[str] = "Model Breadcrumbs, arXiv 2312.06795, section 3.1; mergekit `breadcrumbs`"

    density: float = 0.9  # the share of entries that is kept
    gamma: float = 0.01  # the share of entries, the largest, that is left out
    lambda_: float = 0.3

    def __post_init__(self) -> None:
        check_density(self.density)
        if not 0 <= self.gamma < 1:
            raise ValueError("gamma must be 0 or more and below 1")
        check_finite("lambda", self.lambda_)

    @property
    def statistic(self) -> MiddlingSum:
        """Return the masked sum."""
        return MiddlingSum(self.density, self.gamma)
