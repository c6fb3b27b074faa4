"""Model Breadcrumbs, in batch: mask the smallest and the very largest entries of each tensor, sum.

Source: arXiv 2312.06795, section 3.1; mergekit `sparsify.py` magnitude_outliers, whose parameters these are: of n entries
floor(gamma x n) of the largest go, and of the smallest as many as leave floor(density x n); where that is none or fewer,
fewer of the largest go. mergekit empties the tensor where floor(gamma x n) = 0: its slice ends at -0; here nothing large
goes then. Entries as large as the smallest or the largest that stays all stay. lambda = 0.3 is the paper's alpha.
"""

import torch
from references.interface import Checkpoints
from torch import Tensor


def masked(tau: Tensor, density: float, gamma: float) -> Tensor:
    """Return tau with only the entries of middling magnitude."""
    n = tau.numel()
    if not n:
        return tau
    top = int(gamma * n)
    bottom = n - int(density * n) - top
    if bottom < 0:
        top, bottom = max(top + bottom, 0), 0
    ascending = tau.abs().flatten().sort().values
    last = n - 1 - top
    low, high = ascending[min(bottom, last)], ascending[last]
    return torch.where((tau.abs() >= low) & (tau.abs() <= high), tau, 0.0)


def merge(given: Checkpoints, density: float = 0.9, gamma: float = 0.01, lambda_: float = 0.3) -> dict[str, Tensor]:
    """Return the published task vector of each weight."""
    merged = {name: torch.zeros_like(tau) for name, tau in given.taus[0].items()}
    for tau, share in zip(given.taus, given.counted, strict=True):
        for name in merged:
            merged[name] += lambda_ * share * masked(tau[name], density, gamma)
    return merged
