"""Sums of products of task vectors with themselves: what the rules need that look for the least interference.

Each is a statistic of its own, so that what one rule keeps another can read: for task vectors tau_i (m, n), shares s_i,
G_in = sum s_i tau_i^T tau_i / ||tau_i||^2, G_out = sum s_i tau_i tau_i^T / ||tau_i||^2, B = sum s_i tau_i tau_i^T tau_i /
||tau_i||^2. A task vector that is zero adds nothing. The trace of a Gram matrix is the sum of the shares of the others.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ...state.records import SlotSpec, Weight
from ._matrices import MatrixSum, newcomers, sides, stacked
from .interface import LowRank, Slots, Update


def per_square(product: Tensor, square: Tensor) -> Tensor:
    """Return product / square, or zero where the task vector is zero."""
    return product / square if square > 0 else torch.zeros_like(product)


def gram_in(D: Tensor | LowRank) -> Tensor:
    """Return D^T D / ||D||^2 (n, n), float64; of factors B A it is A^T (B^T B) A / ||B A||^2."""
    if isinstance(D, LowRank):
        B, A = D.B.double(), D.A.double()
        K = B.T @ B  # (r, r)
        return per_square(A.T @ K @ A, (K * (A @ A.T)).sum())
    D = D.double()
    return per_square(D.T @ D, D.square().sum())


def transposed(D: Tensor | LowRank) -> Tensor | LowRank:
    """Return D^T, (n, m)."""
    return LowRank(D.A.T, D.B.T, (D.shape[1], D.shape[0])) if isinstance(D, LowRank) else D.T


def pull(D: Tensor | LowRank) -> Tensor:
    """Return D D^T D / ||D||^2 (m, n), float64; of factors B A it is B (A A^T) (B^T B) A / ||B A||^2."""
    if isinstance(D, LowRank):
        B, A = D.B.double(), D.A.double()
        H, K = A @ A.T, B.T @ B  # (r, r) each
        return per_square(B @ (H @ K) @ A, (H * K).sum())
    short_side = D.shape[1] <= D.shape[0]
    return D.double() @ gram_in(D) if short_side else gram_in(D.T) @ D.double()


@dataclass(frozen=True)
class Gram(MatrixSum):
    """The Gram matrix of the inputs (n, n), or of the outputs (m, m): a float64 slot, for a ridge is to be solved by it."""

    side: Literal["in", "out"]

    def slots(self, w: Weight) -> Mapping[str, SlotSpec]:
        """One slot, square."""
        batch, m, n = sides(w)
        side = n if self.side == "in" else m
        return {"gram": SlotSpec((*batch, side, side), "F64")}

    def term(self, u: Update, w: Weight) -> Slots:
        """Return the newcomer's Gram matrix over its squared norm."""
        given = newcomers(u, w)
        return {"gram": stacked([gram_in(D if self.side == "in" else transposed(D)) for D in given], w)}


@dataclass(frozen=True)
class Pull(MatrixSum):
    """B, what the checkpoints pull the merged matrix towards: a float64 slot of the weight's size."""

    def slots(self, w: Weight) -> Mapping[str, SlotSpec]:
        """One slot."""
        batch, m, n = sides(w)
        return {"pull": SlotSpec((*batch, m, n), "F64")}

    def term(self, u: Update, w: Weight) -> Slots:
        """Return the newcomer's D D^T D over its squared norm."""
        return {"pull": stacked([pull(D) for D in newcomers(u, w)], w)}
