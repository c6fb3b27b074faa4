"""The exponential moving average of the checkpoints: what matters is the latest, and ever less what came before.

Source: arXiv 2505.12082 (model merging in pre-training), M_i = a theta_i + (1 - a) M_(i-1), with a = 0.2: decay = 1 - a.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ...state.records import Counts, SlotSpec, Weight
from ._reading import ReadsEntries
from .interface import Folded, Recurrence, Slots, Update


def moved(M: Tensor, tau: Tensor, decay: float) -> Tensor:
    """Return decay x M + (1 - decay) x tau."""
    return torch.lerp(M, tau.to(M.dtype), 1 - decay)


@dataclass(frozen=True)
class Running(Recurrence):
    """The moving average of the task vectors; the first one is itself. A share of s decays what was there s times."""

    decay: float

    def slots(self, w: Weight) -> Mapping[str, SlotSpec]:
        """One slot in the weight's shape."""
        return {"running": SlotSpec(w.shape)}

    def rowwise(self, w: Weight) -> bool:
        """Always."""
        return True

    def step(self, kept: Slots, u: Update, w: Weight, before: Counts, prepared: Slots) -> Folded:
        """Move the average towards the task vector."""
        M = kept["running"]
        decay = self.decay**u.share if before.shares else 0.0
        return Folded({"running": moved(M, u.delta, decay)})


@dataclass(frozen=True)
class Ema(ReadsEntries):
    """Reads the exponential moving average of the task vectors."""

    source: ClassVar[str] = "exponential moving average of checkpoints, arXiv 2505.12082"

    decay: float = 0.8  # what the average keeps of itself at each checkpoint

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1:
            raise ValueError("decay must be 0 or more and below 1")

    @property
    def statistic(self) -> Running:
        """Return the moving average."""
        return Running(self.decay)
