"""Iso-C in batch, float64: the sum of the task vectors with every singular value replaced by their mean.

Source: "No Task Left Behind: Isotropic Model Merging with Common and Task-Specific Subspaces", arXiv 2502.04959,
section on isotropic merging in common subspace; FusionBench `method/isotropic_merging/iso_utils.py`. All but matrices are
averaged there; the factor is the coefficient of the whole merged task vector (1.0 in FusionBench's configuration, chosen
on validation data in the paper).

Differences, all where the published form is arbitrary or of no use: only singular values above 1e-5 of the largest are
flattened (the others are rounding, and their singular vectors are arbitrary), so that the mean is over those; a single
checkpoint (of a share of no more than 1) is returned as it is (published: flattened too).
"""

import torch
from references.interface import Checkpoints
from references.matrices import each_matrix, weighted_sum
from torch import Tensor

TOLERANCE = 1e-5


def isotropic(total: Tensor) -> Tensor:
    """Return mean(S) U V^T of the sum, (m, n), over the singular values that are there."""
    U, S, Vh = torch.linalg.svd(total, full_matrices=False)
    there = TOLERANCE * S[0] < S
    flat: Tensor = S[there].mean() * U[:, there] @ Vh[there] if bool(there.any()) else torch.zeros_like(total)
    return flat


def merge(given: Checkpoints, lambda_: float = 1.0, others: str = "mean") -> dict[str, Tensor]:
    """Return the published task vectors."""

    def formula(taus: list[Tensor], shares: list[float]) -> Tensor:
        total = weighted_sum(taus, shares)
        return total if len(taus) <= 1 and sum(shares) <= 1 else isotropic(total)

    return {name: lambda_ * tau for name, tau in each_matrix(given, formula, others).items()}
