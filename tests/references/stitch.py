"""Dataless Localize-and-Stitch, in batch: each checkpoint's largest entries, averaged where they overlap.

Source: arXiv 2408.13656, section 4 (dataless: the top k % of magnitudes of the whole task vector; stitching by the mean
over the masks that overlap), and the authors' code (`localize_utils.py`: Localizer.create_basepatch, which keeps what is
larger than the floor(k x d)-th magnitude, so floor(k x d) - 1 entries; Stitcher.get_average_masks). Sparsity is 0.05 for
language models there. Here at least one entry stays, and entries as large as the last that stays do too, but none that is zero.
"""

import torch
from references.interface import Checkpoints
from torch import Tensor


def mask(tau: dict[str, Tensor], density: float) -> dict[str, Tensor]:
    """Return which entries of one checkpoint are kept."""
    magnitudes = torch.cat([tensor.flatten() for tensor in tau.values()]).abs()
    count = max(int(density * magnitudes.numel()) - 1, 1) if density < 1 else magnitudes.numel()
    threshold = magnitudes.topk(count).values[-1]
    return {name: ((tensor.abs() >= threshold) & (tensor != 0)).double() for name, tensor in tau.items()}


def merge(given: Checkpoints, density: float = 0.05) -> dict[str, Tensor]:
    """Return the published task vector of each weight."""
    masks = [mask(dict(tau), density) for tau in given.taus]
    merged = {}
    for name in given.taus[0]:
        rows = list(zip(given.taus, masks, given.counted, strict=True))
        total = torch.stack([share * kept[name] for _, kept, share in rows]).sum(0)
        stitched = torch.stack([share * kept[name] * tau[name] for tau, kept, share in rows]).sum(0)
        merged[name] = stitched / torch.where(total > 0, total, 1.0)
    return merged
