"""ACE-Merging in batch, float64: each checkpoint weighted by the covariance that its own task vector lets one estimate.

Source: "ACE-Merging: Data-Free Model Merging with Adaptive Covariance Estimation", arXiv 2603.02945 (CVPR 2026), and the
authors' code, `src/merge/strategy.py` of unravel-xu/ACE-Merging, `ace_merging`; its defaults (epsilon 0.01, threshold 0.3,
fraction 0.3). This follows the code, step by step; the paper's equations could not be read beside it, so that a difference
between paper and code would not be seen here. The coefficient is 1.0, and all but matrices are averaged.

For one matrix, W_t the task vectors (m, n) and W~_t the same less the mean of its rows:
- heterogeneity: gamma = var(log ||W_t||^2) / mean(log ||W_t||^2)^2; the task vectors are called unlike above the threshold;
- S_t = W~_t^T W~_t, divided by its trace if they are unlike, and epsilon too;
- a prior c: the mean of the rows of sum S_t, divided by the mean of ||W_t||^2 if they are unlike;
- W_0 = (sum W~_t (S_t + e_t I)) (sum (S_t + e_t I) + 1 c^T)^-1;
- if they are unlike, the leading `fraction` of the singular directions of W_0 + sum W_t (S_t - mean S), all with their mean
  singular value, are added.

Differences: a task vector that is zero is left out (published: its logarithm is that of 1e-12); of a share s, every sum
counts s times, and the variance is that of sum(s) checkpoints; with fewer than two there is no variance, and they
are alike, as in the code. Directions under 1e-5 of the largest are not added (published: they
are, and are arbitrary); where fewer than one is to be added (published: not a number), none is.
"""

import torch
from references.interface import Checkpoints
from references.matrices import each_matrix
from torch import Tensor

TINY = 1e-12
TOLERANCE = 1e-5


def heterogeneity(traces: Tensor, shares: Tensor) -> float:
    """Return gamma of the traces (T,): the variance of their logarithms (of a sample) over their squared mean."""
    logs, T = (traces + TINY).log(), float(shares.sum())
    mean = (shares * logs).sum() / T
    variance = (shares * (logs - mean) ** 2).sum() / (T - 1) if T > 1 else torch.zeros(())
    return float(variance / (mean**2 + TINY))


def refinement(fused: Tensor, fraction: float) -> Tensor:
    """Return the leading directions of a matrix (m, n), each with the mean of their singular values."""
    U, S, Vh = torch.linalg.svd(fused, full_matrices=False)
    k = min(int(len(S) * fraction), int((TOLERANCE * S[0] < S).sum()))
    leading: Tensor = S[:k].mean() * U[:, :k] @ Vh[:k] if k else torch.zeros_like(fused)
    return leading


def covariance_weighted(
    taus: list[Tensor], shares: list[float], epsilon: float, threshold: float, fraction: float
) -> Tensor:
    """Return the merged matrix."""
    W, s = torch.stack(taus), torch.tensor(shares, dtype=torch.float64)[:, None, None]  # (T, m, n), (T, 1, 1)
    traces, T = W.square().sum((1, 2)), float(s.sum())
    unlike = heterogeneity(traces, s.flatten()) > threshold
    centred = W - W.mean(1, keepdim=True)
    Sigma = centred.mT @ centred  # (T, n, n)
    trace = Sigma.diagonal(dim1=1, dim2=2).sum(1)[:, None, None] + TINY
    ridge = epsilon * torch.eye(W.shape[2], dtype=W.dtype) / (trace if unlike else 1.0)
    Sigma = Sigma / (trace if unlike else 1.0)
    prior = (s * Sigma).sum(0).mean(0, keepdim=True) / (
        float((s.flatten() * traces).sum()) / T + TINY if unlike else 1.0
    )
    total = (s * (Sigma + ridge)).sum(0)
    W_0: Tensor = (s * (centred @ (Sigma + ridge))).sum(0) @ torch.linalg.inv(total + prior)
    if not unlike:
        return W_0
    rest = (s * (W @ (Sigma - total / T))).sum(0)
    return W_0 + refinement(rest + W_0, fraction)


def merge(given: Checkpoints, epsilon: float = 0.01, threshold: float = 0.3, fraction: float = 0.3,
          others: str = "mean") -> dict[str, Tensor]:  # fmt: skip
    """Return the published task vectors."""

    def formula(taus: list[Tensor], shares: list[float]) -> Tensor:
        return covariance_weighted(taus, shares, epsilon, threshold, fraction)

    return each_matrix(given, formula, others, skip_zero=True)
