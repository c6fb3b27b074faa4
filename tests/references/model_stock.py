"""Model Stock, in batch: the mean of the task vectors, drawn towards the base by the angle between them, weight by weight.

Source: arXiv 2403.19522, section 4 and appendix (N checkpoints): t = N cos / (1 + (N - 1) cos), w = t x mean + (1 - t) x w_0,
with one cosine per weight; mergekit `merge_methods/model_stock.py` takes the mean of the cosines of all pairs, as here. A
pair with a zero task vector has cosine 0. The paper's t lies between 0 and 1 (angles up to 90 degrees); where the mean
cosine is negative, mergekit's t runs to minus infinity, and here it is 0. A single checkpoint is itself (t = 1).
"""

from itertools import combinations

import torch
from references.interface import Checkpoints
from torch import Tensor


def cosine(x: Tensor, y: Tensor) -> float:
    """Return the cosine of two task vectors; 0 where one is zero."""
    x, y = x.flatten() / (x.abs().max() or 1.0), y.flatten() / (y.abs().max() or 1.0)
    norms = float(x.norm() * y.norm())
    return float(x @ y) / norms if norms else 0.0


def mean_cosine(taus: list[Tensor], shares: list[float]) -> float:
    """Return the mean cosine of all pairs; a share of s is the checkpoint s times, whose copies have cosine 1."""
    total = sum(shares)
    pairs = combinations(zip(taus, shares, strict=True), 2)
    between = sum(2 * s * r * cosine(x, y) for (x, s), (y, r) in pairs)
    within = sum(s * (s - 1) for x, s in zip(taus, shares, strict=True) if x.any())
    return (between + within) / (total * (total - 1))


def merge(given: Checkpoints) -> dict[str, Tensor]:
    """Return the published task vector of each weight."""
    shares = list(given.counted)
    N, merged = sum(shares), {}
    for name in given.taus[0]:
        taus = [tau[name] for tau in given.taus]
        if not taus[0].numel():
            merged[name] = taus[0]
            continue
        cos = max(mean_cosine(taus, shares), 0.0) if N > 1 else 1.0
        t = N * cos / (1 + (N - 1) * cos)
        merged[name] = t * torch.stack([s * tau for s, tau in zip(shares, taus, strict=True)]).sum(0) / N
    return merged
