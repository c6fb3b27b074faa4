"""The exponential moving average of checkpoints, in closed form.

Source: arXiv 2505.12082, section on merging methods: M_i = a theta_i + (1 - a) M_{i-1}, M_1 = theta_1, with a = 0.2 (and
0.1); here decay = 1 - a. Unrolled: checkpoint i weighs (1 - decay) decay^(T - i), the first one decay^(T - 1).
A share of s is the checkpoint s times in a row: the weights of s equal terms are summed.
"""

import torch
from references.interface import Checkpoints
from torch import Tensor


def weights(shares: list[float], decay: float) -> list[float]:
    """Return what each checkpoint weighs; they sum to 1."""
    later = [sum(shares[i + 1 :]) for i in range(len(shares))]
    fresh = [1.0 - decay ** (share if i else float("inf")) for i, share in enumerate(shares)]
    return [new * decay**after for new, after in zip(fresh, later, strict=True)]


def merge(given: Checkpoints, decay: float = 0.8) -> dict[str, Tensor]:
    """Return the published task vector of each weight."""
    share = weights(list(given.counted), decay)
    return {
        name: torch.stack([w * tau[name] for w, tau in zip(share, given.taus, strict=True)]).sum(0)
        for name in given.taus[0]
    }
