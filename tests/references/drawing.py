"""How the batch references draw: numbers that are a function of a seed and a place, by splitmix64 in unsigned integers."""

import numpy as np
import torch
from torch import Tensor


def uniform(seed: int, count: int) -> Tensor:
    """Return splitmix64's u(seed, i) in [0, 1) for i < count, float64."""
    with np.errstate(over="ignore"):
        x = np.uint64(seed) + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        x = x ^ (x >> np.uint64(31))
    return torch.from_numpy((x >> np.uint64(11)).astype(np.float64) * 2.0**-53)
