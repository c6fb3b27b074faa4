"""TIES-Merging, in batch: trim, elect sign, disjoint mean.

Source: arXiv 2306.01708, section 3; the authors' code (`src/utils/merge_utils.py`: topk_values_mask, resolve_sign "mass",
disjoint_merge "mean") for trim "model": over the whole flattened checkpoint the threshold is the (d - floor(d x density))-th
smallest magnitude, so that floor(d x density) + 1 entries stay; mergekit (`sparsify.py` magnitude) for trim "tensor":
the floor(d x density) largest of each tensor, here at least one. Entries as large as the threshold all stay.
Where the positive and the negative mass are equal but for rounding, the sign is positive, as in mergekit (the authors
take the sign that is elected most often in the whole model).
"""

import torch
from references.interface import Checkpoints
from torch import Tensor

EPSILON = 1e-6  # float32 sums of equal masses differ by this


def largest(magnitudes: Tensor, count: int) -> float:
    """Return the smallest of the `count` largest magnitudes; at least one is meant, and at most all."""
    count = min(max(count, 1), magnitudes.numel())
    return float(magnitudes.flatten().sort(descending=True).values[count - 1]) if count else 0.0


def trimmed_of(tau: dict[str, Tensor], density: float, over: str) -> dict[str, Tensor]:
    """Return the task vectors of one checkpoint with their small entries zeroed."""
    if over == "model":
        flat = torch.cat([tensor.flatten() for tensor in tau.values()]).abs()
        threshold = largest(flat, int(flat.numel() * density) + 1)
        thresholds = dict.fromkeys(tau, threshold)
    else:
        thresholds = {name: largest(tensor.abs(), int(tensor.numel() * density)) for name, tensor in tau.items()}
    return {name: torch.where(tensor.abs() >= thresholds[name], tensor, 0.0) for name, tensor in tau.items()}


def elect(taus: Tensor, shares: Tensor) -> Tensor:
    """Return where the positive sign is elected; taus (T, ...), shares (T, 1, ...)."""
    positive, negative = (shares * taus.clamp(min=0)).sum(0), (shares * taus.clamp(max=0)).sum(0)
    return positive + negative >= -EPSILON * (positive - negative)


def disjoint_mean(taus: Tensor, shares: Tensor) -> Tensor:
    """Return the mean of the entries that have the elected sign; zero entries do not count."""
    agrees = torch.where(elect(taus, shares), taus > 0, taus < 0)  # (T, ...)
    count = (shares * agrees).sum(0)
    return (shares * torch.where(agrees, taus, 0.0)).sum(0) / torch.where(count > 0, count, 1.0)


def merge(given: Checkpoints, density: float = 0.2, lambda_: float = 1.0, trim: str = "model") -> dict[str, Tensor]:
    """Return the published task vector of each weight."""
    trimmed = [trimmed_of(dict(tau), density, trim) for tau in given.taus]
    merged = {}
    for name in trimmed[0]:
        taus = torch.stack([tau[name] for tau in trimmed])  # (T, ...)
        shares = torch.tensor(given.counted, dtype=torch.float64).reshape(-1, *[1] * (taus.ndim - 1))
        merged[name] = lambda_ * disjoint_mean(taus, shares)
    return merged
