"""NUFILT's closed-form half in float64: each newcomer without what it would do to the inputs that were served before.

Source: "Null-Space Filtering for Data-Free Continual Model Merging", arXiv 2509.21413, and the authors' code, zihuanqiu/NUFILT,
`fusion_bench/models/filter_lora.py` (`FilterLoRA`, with no adapter trained: its B is zero) and `nufilt.py`, null_r 128. For
each linear weight, A the merged task vector so far and V (n, r) its leading right singular vectors:
A' = A + tau (I - V V^T). The second half, an adapter trained on a surrogate loss, is no closed form and left out.

Differences: where A is zero the newcomer is added whole (published: the singular vectors of a zero matrix, which take
away its first 128 inputs); directions of A under 1e-5 of its largest are rounding and not protected; every matrix is
folded so (published: those named `attn` and `fc1`, all else stays that of the base model), and all but matrices are
averaged. A share of 2 is two folds; of what is left of a share under 1, so much is added.
"""

import torch
from references.interface import Checkpoints
from references.matrices import each_matrix, one_by_one
from torch import Tensor

TOLERANCE = 1e-5


def filtered(A: Tensor, tau: Tensor, rank: int) -> Tensor:
    """Return tau (I - V V^T); A and tau are (m, n)."""
    if not A.any():
        return tau
    _, S, Vh = torch.linalg.svd(A, full_matrices=False)
    V = Vh[: min(rank, int((TOLERANCE * S[0] < S).sum()))].T
    kept: Tensor = tau - tau @ V @ V.T
    return kept


def merge(given: Checkpoints, rank: int = 128, others: str = "mean") -> dict[str, Tensor]:
    """Return the published task vectors; the order of the checkpoints matters."""

    def formula(taus: list[Tensor], shares: list[float]) -> Tensor:
        A = torch.zeros_like(taus[0])
        for tau, share in one_by_one(taus, shares):
            A = A + share * filtered(A, tau, rank)
        return A

    return each_matrix(given, formula, others)
