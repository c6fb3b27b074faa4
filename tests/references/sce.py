"""SCE of FuseChat with nothing deselected (select_topk = 1), in batch: energy-weighted disjoint mean.

Source: arXiv 2408.07990, section 3.2 (select, calculate, erase); mergekit `merge_methods/sce.py`, whose default select_topk
is 1: a checkpoint weighs the mean square of its task vector in this tensor; entries are erased whose sign is not that of
the plain sum (positive where it is zero); what is left is averaged with those weights.
"""

import torch
from references.interface import Checkpoints
from torch import Tensor

EPSILON = 1e-12  # a sum below this share of its terms is zero


def merge(given: Checkpoints, lambda_: float = 1.0) -> dict[str, Tensor]:
    """Return the published task vector of each weight."""
    merged = {}
    for name in given.taus[0]:
        taus = torch.stack([tau[name] for tau in given.taus])  # (T, ...)
        shares = torch.tensor(given.counted, dtype=torch.float64).reshape(-1, *[1] * (taus.ndim - 1))
        energy = taus.square().reshape(len(taus), -1).mean(1).reshape(shares.shape) if taus.numel() else shares
        sums, masses = (shares * taus).sum(0), (shares * taus.abs()).sum(0)
        majority = torch.where(sums >= -EPSILON * masses, 1.0, -1.0)
        weight = shares * energy * (taus.sign() == majority)  # (T, ...)
        total = weight.sum(0)
        merged[name] = lambda_ * (weight * taus).sum(0) / torch.where(total > 0, total, 1.0)
    return merged
