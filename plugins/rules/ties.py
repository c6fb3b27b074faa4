"""TIES-Merging: trim each task vector, elect a sign for each entry, average what has that sign.

Source: arXiv 2306.01708, section 3, and its code. The authors trim over the whole checkpoint, mergekit each tensor by itself.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from ...state.records import Counts, Weight
from ._masses import Masses, disjoint_mean
from ._reading import ReadsEntries, TimesLambda, check_density, check_finite
from .interface import Slots, Statistic, Survey, Update, check_one_of
from .surveys import Magnitude

Trim = Literal["model", "tensor"]


def trimmed(tau: Tensor, least: Tensor) -> Tensor:
    """Return tau with the entries zeroed whose magnitude does not reach `least`; those that equal it stay."""
    return torch.where(tau.abs() >= least, tau, 0.0)


def least_kept(tau: Tensor, density: float) -> Tensor:
    """Return the smallest of the floor(density n) largest magnitudes of tau's n entries; one entry is always kept."""
    n = tau.numel()
    count = max(int(density * n), 1)
    return tau.abs().reshape(-1).kthvalue(n - count + 1).values if n else tau.new_zeros(())


@dataclass(frozen=True)
class TrimmedMasses(Masses):
    """The masses of trimmed task vectors."""

    density: float
    trim: Trim

    @property
    def surveys(self) -> tuple[Survey, ...]:
        """What the largest numbers of the whole checkpoint reach, where it is trimmed as a whole."""
        return (self._survey,) if self.trim == "model" else ()

    @property
    def _survey(self) -> Magnitude:
        """The authors' threshold is the (n - floor(density n))-th smallest number: one more stays than the density says."""
        return Magnitude(self.density, more=1)

    def rowwise(self, w: Weight) -> bool:
        """Where the threshold is known beforehand."""
        return self.trim == "model"

    def kept_of(self, u: Update, w: Weight) -> Tensor:
        """Return the trimmed task vector."""
        if self.trim == "model":
            return trimmed(u.delta, u.whole[self._survey]["least"])
        return trimmed(u.delta, least_kept(u.delta, self.density))


@dataclass(frozen=True)
class Ties(TimesLambda, ReadsEntries):
    """Reads, of the trimmed task vectors, the mean of the entries that have the elected sign, times a constant.

    - `model` (default): a task vector is trimmed as a whole, as the authors do.
    - `tensor`: each weight is trimmed by itself, as mergekit does.
    """

    source: ClassVar[str] = "TIES-Merging, arXiv 2306.01708, section 3"

    density: float = 0.2  # the share of entries, the largest, that is kept
    lambda_: float = 1.0
    trim: Trim = "model"

    def __post_init__(self) -> None:
        check_density(self.density)
        check_finite("lambda", self.lambda_)
        check_one_of("trim", self.trim, get_args(Trim))

    @property
    def statistic(self) -> TrimmedMasses:
        """Return the masses of the trimmed task vectors."""
        return TrimmedMasses(self.density, self.trim)

    def merged(self, kept: Mapping[Statistic, Slots], w: Weight, counts: Counts) -> Tensor:
        """Return the disjoint mean."""
        return disjoint_mean(kept[self.statistic], counts)
