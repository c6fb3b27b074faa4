"""SCE: the mean of the entries that have the sign of the plain sum, weighed by the energy of each checkpoint's weight.

Source: FuseChat, arXiv 2408.07990, section 3.2 (select, calculate, erase), with nothing deselected (select_topk = 1); mergekit
`sce`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ...state.records import Counts, SlotSpec, Weight
from ._masses import quotient
from ._reading import ReadsEntries, TimesLambda, check_finite
from .interface import Slots, Statistic, Sum, Survey, Update
from .surveys import Energy

ENERGY = Energy()  # the mean square of a weight's task vector: what its checkpoint weighs there
ROUNDING = 1e-12  # of the energy of all checkpoints: what is less was left by rounding when one was taken out


def erased_mean(S: Tensor, P: Tensor, N: Tensor, c_P: Tensor, c_N: Tensor, least: Tensor) -> Tensor:
    """Return sum E tau / sum E over the entries that have the sign of S; a sum of 0 has the positive one.

    S: sum tau; P and N: sum E tau of the positive and of the negative entries; c_P and c_N: sum E of the checkpoints that
    have them.
    """
    return quotient(torch.where(S >= 0, P, N), torch.where(S >= 0, c_P, c_N), least)


@dataclass(frozen=True)
class EnergySum(Sum):
    """The sum of the task vectors, and the sums by sign weighed by energy, which is surveyed beforehand.

    In float64: sums of float32 numbers are exact in it, so that a sum that is zero has no sign by accident, and energies,
    which are squares, have its range.
    """

    @property
    def surveys(self) -> tuple[Survey, ...]:
        """The energies."""
        return (ENERGY,)

    def slots(self, w: Weight) -> Mapping[str, SlotSpec]:
        """Five slots in the weight's shape, and the energy: once for each row, so that blocks of rows have it too."""
        names = ("sum", "positive", "negative", "positive_energy", "negative_energy")
        return {name: SlotSpec(w.shape, "F64") for name in names} | {"energy": SlotSpec(w.shape[:1], "F64")}

    def rowwise(self, w: Weight) -> bool:
        """Always."""
        return True

    def term(self, u: Update, w: Weight) -> Slots:
        """Return the entries by sign, and weighed."""
        tau, E = u.delta.double(), float(u.whole[ENERGY][w.name])
        return {
            "sum": tau,
            "positive": E * tau.clamp(min=0),
            "negative": E * tau.clamp(max=0),
            "positive_energy": E * (tau > 0).double(),
            "negative_energy": E * (tau < 0).double(),
            "energy": tau.new_full(tau.shape[:1], E),
        }


@dataclass(frozen=True)
class Sce(TimesLambda, ReadsEntries):
    """Reads the energy-weighed mean of the entries that have the sign of the plain sum, times a constant."""

    source: ClassVar[str] = "SCE of FuseChat, arXiv 2408.07990, section 3.2, select_topk = 1"

    lambda_: float = 1.0

    def __post_init__(self) -> None:
        check_finite("lambda", self.lambda_)

    @property
    def statistic(self) -> EnergySum:
        """Return the energy-weighed sums."""
        return EnergySum()

    def merged(self, kept: Mapping[Statistic, Slots], w: Weight, counts: Counts) -> Tensor:
        """Return the mean."""
        s = kept[self.statistic]
        energy = s["energy"].reshape(s["energy"].shape + (1,) * (len(w.shape) - s["energy"].ndim))
        sums = (s["sum"], s["positive"], s["negative"], s["positive_energy"], s["negative_energy"])
        return erased_mean(*sums, ROUNDING * energy).float()
