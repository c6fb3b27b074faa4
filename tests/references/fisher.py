"""Fisher merging with diagonal Fisher information, in batch.

Source: arXiv 2111.09832, equation 4: theta* = sum_i s_i F_i theta_i / sum_i s_i F_i, entry by entry; FusionBench
`method/fisher_merging` adds 1e-6 to every F, so that where no checkpoint has any, their mean is left: that limit is taken
here, and nothing is added elsewhere. Fisher information is not normalized per checkpoint (FusionBench: an option).
"""

import torch
from references.interface import Checkpoints
from torch import Tensor


def merge(given: Checkpoints) -> dict[str, Tensor]:
    """Return the published task vector of each weight."""
    merged = {}
    for name in given.taus[0]:
        taus = torch.stack([tau[name] for tau in given.taus])  # (T, ...)
        F = torch.stack([extra["fisher"][name].double() for extra in given.extras])  # (T, ...)
        shares = torch.tensor(given.counted, dtype=torch.float64).reshape(-1, *[1] * (taus.ndim - 1))
        weight = torch.where(F.sum(0) > 0, shares * F, shares)
        merged[name] = (weight * taus).sum(0) / weight.sum(0)
    return merged
