"""Two-sided Gram regression in batch, float64: the mean of the ridge solutions for the inputs and for the outputs.

Source: this project's own method; there is no paper. The input side is WUDI's closed form (arXiv 2503.08099) with a ridge:
the X that makes sum of ||(X - tau) tau^T||^2 / ||tau||^2 + e ||X||^2 least. The output side is the same of the transposed
task vectors, transposed back. Each side's e is epsilon times the mean eigenvalue of its Gram matrix. A matrix whose long side is
more than `long_side` times its short side has the short side's solution alone. All but matrices are averaged; there is no
coefficient. A task vector that is zero is left out.
"""

import torch
from references.interface import Checkpoints
from references.matrices import each_matrix, weighted_sum
from torch import Tensor


def input_side(taus: list[Tensor], shares: list[float], epsilon: float) -> Tensor:
    """Solve X (sum G_i + e I) = sum tau_i G_i with G_i = tau_i^T tau_i / ||tau_i||^2, by the eigenvectors of the sum."""
    G = [tau.T @ tau / tau.square().sum() for tau in taus]
    values, Q = torch.linalg.eigh(weighted_sum(G, shares))
    weighted = weighted_sum([tau @ one for tau, one in zip(taus, G, strict=True)], shares)
    X: Tensor = weighted @ Q / (values + epsilon * values.mean()) @ Q.T
    return X


def merge(given: Checkpoints, epsilon: float = 0.1, long_side: float = 4.0, others: str = "mean") -> dict[str, Tensor]:
    """Return the published task vectors."""

    def formula(taus: list[Tensor], shares: list[float]) -> Tensor:
        m, n = taus[0].shape
        by_input = input_side(taus, shares, epsilon)
        by_output = input_side([tau.T for tau in taus], shares, epsilon).T
        if max(m, n) > long_side * min(m, n):
            return by_input if n < m else by_output
        return (by_input + by_output) / 2

    return each_matrix(given, formula, others, skip_zero=True)
