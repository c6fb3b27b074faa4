"""What elects a sign: the mass of the positive and of the negative entries, and how many checkpoints gave each.

Source: TIES-Merging, arXiv 2306.01708, section 3 (elect sign, disjoint merge).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ...state.records import Counts, SlotSpec, Weight
from .interface import Slots, Sum, Update

TIE = 1e-6  # masses that differ by no more than this share of both are equal but for rounding in float32
NOBODY = 1e-6  # of all shares: what is less was left by rounding when a checkpoint was taken out


def elect(P: Tensor, N: Tensor, tie: float = TIE) -> Tensor:
    """Return where the elected sign is positive: where the positive mass P >= 0 outweighs the negative one N <= 0.

    Equal masses elect the positive sign; equal is what rounding cannot tell apart: |P + N| <= tie (|P| + |N|).
    """
    margin = tie * (P - N)
    return (P + N + margin) >= 0


def quotient(sums: Tensor, shares: Tensor, least: float | Tensor) -> Tensor:
    """Return sums / shares, and 0 where nobody has a share."""
    return torch.where(shares > least, sums / shares, 0.0)


def disjoint_mean(kept: Slots, counts: Counts) -> Tensor:
    """Return the mean of the entries that have the elected sign, over the checkpoints that have such an entry."""
    P, N = kept["positive"], kept["negative"]
    positive = elect(P, N)
    shares = torch.where(positive, kept["positive_shares"], kept["negative_shares"])
    return quotient(torch.where(positive, P, N), shares, NOBODY * counts.shares)


@dataclass(frozen=True)
class Masses(Sum):
    """The sums of the positive and of the negative entries that are kept of each task vector, and of their shares."""

    def kept_of(self, u: Update, w: Weight) -> Tensor:
        """Return the task vector with what is not kept of it zeroed."""
        raise NotImplementedError

    def slots(self, w: Weight) -> Mapping[str, SlotSpec]:
        """Four slots in the weight's shape."""
        return {name: SlotSpec(w.shape) for name in ("positive", "negative", "positive_shares", "negative_shares")}

    def term(self, u: Update, w: Weight) -> Slots:
        """Return the entries by sign, and a one for each."""
        tau = self.kept_of(u, w)
        return {
            "positive": tau.clamp(min=0),
            "negative": tau.clamp(max=0),
            "positive_shares": tau > 0,
            "negative_shares": tau < 0,
        }
