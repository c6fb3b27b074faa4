"""Task arithmetic, in batch: lambda times the sum of the task vectors.

Source: arXiv 2212.04089, section 2 (learning via addition); lambda = 0.3 is the paper's for eight vision tasks.
"""

import torch
from references.interface import Checkpoints
from torch import Tensor


def merge(given: Checkpoints, lambda_: float = 0.3) -> dict[str, Tensor]:
    """Return the published task vector of each weight: lambda x sum_i s_i tau_i."""
    shares = torch.tensor(given.counted, dtype=torch.float64)  # (T,)
    stacked = {name: torch.stack([tau[name] for tau in given.taus]) for name in given.taus[0]}  # (T, ...)
    return {name: lambda_ * torch.tensordot(shares, taus, dims=1) for name, taus in stacked.items()}
