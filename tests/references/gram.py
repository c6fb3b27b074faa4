"""Two-sided Gram regression in batch, float64: the mean of the ridge solutions for the inputs and for the outputs.

Source: this project's own method; there is no paper. The input side is WUDI's closed form (arXiv 2503.08099) with a ridge:
the X that makes sum of ||(X - tau) tau^T||^2 / ||tau||^2 + e ||X||^2 least. The output side is the same of the transposed
task vectors, transposed back. The mean of both has its singular values s made s^(1 / T^flatten), at the same Frobenius norm; T is the sum
of the shares of those that changed the matrix. Each side's e is epsilon times the mean eigenvalue of its Gram matrix. A matrix whose long side is
more than `long_side` times its short side has the short side's solution alone. All but matrices are averaged. The
coefficient is lambda, where there is more than one checkpoint. A task vector that is zero is left out.
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


def flattened(X: Tensor, power: float) -> Tensor:
    """Return X with its singular values taken to a power, at its norm; those that are rounding are none."""
    U, S, Vh = torch.linalg.svd(X, full_matrices=False)
    powers = torch.where(1e-5 * S[:1] < S, S**power, torch.zeros_like(S))
    Y: Tensor = U * (powers * (S.norm() / powers.norm())) @ Vh
    return Y


def merge(
    given: Checkpoints,
    epsilon: float = 0.1,
    long_side: float = 4.0,
    flatten: float = 0.5,
    lambda_: float = 1.15,
    others: str = "mean",
) -> dict[str, Tensor]:
    """Return the published task vectors."""

    def formula(taus: list[Tensor], shares: list[float]) -> Tensor:
        m, n = taus[0].shape
        by_input = input_side(taus, shares, epsilon)
        by_output = input_side([tau.T for tau in taus], shares, epsilon).T
        both = (by_input + by_output) / 2
        if max(m, n) > long_side * min(m, n):
            both = by_input if n < m else by_output
        return flattened(both, max(sum(shares), 1.0) ** -flatten)

    merged = each_matrix(given, formula, others, skip_zero=True)
    return {name: (lambda_ if len(given.taus) > 1 else 1.0) * tau for name, tau in merged.items()}
