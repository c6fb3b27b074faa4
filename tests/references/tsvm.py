"""TSV-M in batch, float64: each checkpoint's leading singular triplets, made orthogonal to those of the others.

Source: "Task Singular Vectors: Reducing Task Interference in Model Merging", arXiv 2412.00081, section on TSV-Merge; the
authors' `src/utils/TSVM_utils.py` and FusionBench `method/task_singular_vector`. Of T task vectors each keeps its
floor(k / T) leading triplets, k = min(m, n); the stacked U (m, k) and V (n, k) are replaced by their polar factors, and the
matrix put together with the kept singular values. All but matrices are averaged; the coefficient is 1.0.

Differences, all where the published form fails: a task vector that is zero is not counted; triplets under 1e-5 of their
checkpoint's largest are left out, and singular values of the stacks are floored at 1e-5 of the largest (the published
polar factor of a rank-deficient stack is made of arbitrary directions); with T > k, where not one triplet each would be
left, the matrix is the mean. A share is a number of blocks, as if the checkpoint were there so often; what is left of a
share under 1 is a block with its singular values times that.
"""

import torch
from references.interface import Checkpoints
from references.matrices import each_matrix, one_by_one, plainly
from torch import Tensor

TOLERANCE = 1e-5


def polar_factor(stack: Tensor) -> Tensor:
    """Return P Q^T of a stack P S Q^T (side, k); directions under the floor shrink to nothing with their size."""
    P, S, Qh = torch.linalg.svd(stack, full_matrices=False)
    factor: Tensor = P * (S / S.clamp(min=TOLERANCE * float(S[0]))) @ Qh
    return factor


def orthogonalised(taus: list[Tensor], shares: list[float]) -> Tensor:
    """Return sum over the kept triplets, with the polar factors of all left and of all right vectors."""
    blocks = one_by_one(taus, shares)
    each = min(taus[0].shape) // len(blocks)
    if not each:
        return plainly(taus, shares, "mean")
    U: list[Tensor] = []
    S: list[Tensor] = []
    V: list[Tensor] = []
    for tau, weight in blocks:
        u, s, vh = torch.linalg.svd(tau, full_matrices=False)
        kept = int((TOLERANCE * s[0] < s[:each]).sum())
        U.append(u[:, :kept])
        S.append(weight * s[:kept])
        V.append(vh[:kept].T)
    merged: Tensor = polar_factor(torch.cat(U, 1)) * torch.cat(S) @ polar_factor(torch.cat(V, 1)).T
    return merged


def merge(given: Checkpoints, lambda_: float = 1.0, others: str = "mean") -> dict[str, Tensor]:
    """Return the published task vectors."""
    merged = each_matrix(given, orthogonalised, others, skip_zero=True)
    return {name: lambda_ * tau for name, tau in merged.items()}
