"""MagMax, in batch: of each entry the value of the largest magnitude, times lambda.

Source: arXiv 2407.06322, section 3.2, and the authors' code (`src/merging/task_vectors.py` merge_max_abs; 0.5 in
`merge_splitted.py` and for eight tasks). Of two values of one magnitude and different sign the paper's argmax takes
either and the authors' loop the later one; here it is the positive one, so that the order of the checkpoints is nothing.
"""

import torch
from references.interface import Checkpoints
from torch import Tensor


def merge(given: Checkpoints, lambda_: float = 0.5) -> dict[str, Tensor]:
    """Return the published task vector of each weight; a share says nothing here."""
    merged = {}
    for name in given.taus[0]:
        taus = torch.stack([tau[name] for tau in given.taus])  # (T, ...)
        highest, lowest = taus.amax(0), taus.amin(0)
        merged[name] = lambda_ * torch.where(highest >= -lowest, highest, lowest)
    return merged
