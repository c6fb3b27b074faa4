"""The mean of the task vectors, in batch.

Source: model soups, arXiv 2203.05482, section 2 (uniform soup); mergekit `merge_methods/linear.py` (normalized weights).
"""

import torch
from references.interface import Checkpoints
from torch import Tensor


def merge(given: Checkpoints) -> dict[str, Tensor]:
    """Return the published task vector of each weight: sum_i s_i tau_i / sum_i s_i."""
    shares = torch.tensor(given.counted, dtype=torch.float64)  # (T,)
    stacked = {name: torch.stack([tau[name] for tau in given.taus]) for name in given.taus[0]}  # (T, ...)
    return {name: torch.tensordot(shares, taus, dims=1) / shares.sum() for name, taus in stacked.items()}
