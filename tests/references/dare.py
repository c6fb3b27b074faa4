"""DARE with task arithmetic, in batch: drop at random, rescale, sum.

Source: arXiv 2311.03099, section 3.1 (drop with probability p, rescale by 1 / (1 - p)), with p = 0.9, and its code
(MergeLM); mergekit calls 1 - p the density (`dare_linear`). lambda = 0.3 is task arithmetic's (arXiv 2212.04089).
The random numbers are splitmix64's, of the checkpoint's seed of the weight and the entry's row-major index.
"""

import torch
from references.drawing import uniform
from references.interface import Checkpoints
from torch import Tensor


def dropped(tau: Tensor, seed: int, density: float) -> Tensor:
    """Return tau with what the mask keeps of it, divided by the density."""
    kept = uniform(seed, tau.numel()).reshape(tau.shape) < density
    return torch.where(kept, tau / density, 0.0)


def merge(given: Checkpoints, density: float = 0.1, lambda_: float = 0.3) -> dict[str, Tensor]:
    """Return the published task vector of each weight."""
    merged = {name: torch.zeros_like(tau) for name, tau in given.taus[0].items()}
    for tau, seeds, share in zip(given.taus, given.seeds, given.counted, strict=True):
        for name in merged:
            merged[name] += lambda_ * share * dropped(tau[name], seeds[name], density)
    return merged
