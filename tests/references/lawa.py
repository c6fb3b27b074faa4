"""Latest weight averaging, in batch: the mean of the last k checkpoints.

Source: arXiv 2209.14981, algorithm 1 (k = 6 there); of fewer than k checkpoints, the mean of those.
A share of s is the checkpoint s times in a row, so the window covers the last k shares: whole checkpoints from the
newest back, and of the one where it begins as much as is left. It never has more than k checkpoints.
"""

import torch
from references.interface import Checkpoints
from torch import Tensor


def window(shares: list[float], k: int) -> list[float]:
    """Return how much of each checkpoint's share lies in the window."""
    inside = [0.0] * len(shares)
    left = float(k)
    for i in range(len(shares) - 1, max(len(shares) - k, 0) - 1, -1):
        inside[i] = min(shares[i], left)
        left -= inside[i]
    return inside


def merge(given: Checkpoints, k: int = 6) -> dict[str, Tensor]:
    """Return the published task vector of each weight."""
    inside = torch.tensor(window(list(given.counted), k), dtype=torch.float64)  # (T,)
    stacked = {name: torch.stack([tau[name] for tau in given.taus]) for name in given.taus[0]}  # (T, ...)
    return {name: torch.tensordot(inside, taus, dims=1) / inside.sum() for name, taus in stacked.items()}
