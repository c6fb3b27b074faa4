"""DELLA-Merging, in batch: drop at random by the magnitude's rank in its row, rescale, elect sign, disjoint mean.

Source: arXiv 2406.11617, section 3 (MagPrune; the survivors are divided by their probability to be kept), the authors' code
(`mergekit/sparsify.py` rank_magnitude) and mergekit's `della` (sum consensus, normalized). Defaults are those of the
authors' README: drop rate 0.3, window 0.14 (epsilon is half of it), lambda 1.1. Newer mergekit rescales each tensor to its
old l1 norm instead; a row of one entry gives it 0 / 0, here that entry is kept with the density's probability.
Rows are those of each matrix, and of a convolution (out, in x k x k); a vector is one row. Equal magnitudes rank by place.
"""

import torch
from references.drawing import uniform
from references.interface import Checkpoints
from torch import Tensor

EPSILON = 1e-6  # float32 sums of equal masses differ by this


def keep_probability(rows: Tensor, density: float, epsilon: float) -> Tensor:
    """Return each entry's probability to be kept: from density - epsilon for the smallest of its row to + for the largest."""
    n = rows.shape[1]
    if n < 2:
        return torch.full_like(rows, density)
    order = rows.abs().argsort(dim=1, stable=True)
    rank = torch.empty_like(rows)
    rank.scatter_(1, order, torch.arange(n, dtype=rows.dtype).expand_as(rows).contiguous())
    return density - epsilon + 2 * epsilon * rank / (n - 1)


def sampled(tau: Tensor, seed: int, convolution: bool, density: float, epsilon: float) -> Tensor:
    """Return tau as MagPrune leaves it."""
    if not tau.numel():
        return tau
    rows = tau.reshape(1, -1) if tau.ndim < 2 else tau.flatten(1) if convolution else tau.flatten(0, -2)
    p = keep_probability(rows, density, epsilon)
    kept = uniform(seed, tau.numel()).reshape(rows.shape) < p
    return torch.where(kept, rows / p, 0.0).reshape(tau.shape)


def disjoint_mean(taus: Tensor, shares: Tensor) -> Tensor:
    """Return the mean of the entries that have the sign of the larger mass; taus (T, ...), shares (T, 1, ...)."""
    positive, negative = (shares * taus.clamp(min=0)).sum(0), (shares * taus.clamp(max=0)).sum(0)
    elected = positive + negative >= -EPSILON * (positive - negative)
    agrees = torch.where(elected, taus > 0, taus < 0)
    count = (shares * agrees).sum(0)
    return torch.where(elected, positive, negative) / torch.where(count > 0, count, 1.0)


def merge(given: Checkpoints, density: float = 0.7, epsilon: float = 0.07, lambda_: float = 1.1) -> dict[str, Tensor]:
    """Return the published task vector of each weight."""
    merged = {}
    for name in given.taus[0]:
        convolution = given.kinds[name] not in ("matrix", "lookup")  # summed, it is among the others
        pairs = zip(given.taus, given.seeds, strict=True)
        taus = torch.stack([sampled(tau[name], seeds[name], convolution, density, epsilon) for tau, seeds in pairs])
        shares = torch.tensor(given.counted, dtype=torch.float64).reshape(-1, *[1] * (taus.ndim - 1))
        merged[name] = lambda_ * disjoint_mean(taus, shares)
    return merged
