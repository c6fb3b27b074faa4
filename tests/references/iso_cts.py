"""Iso-CTS in batch, transcribed in float64: isotropic merging in common and task-specific subspaces.

Source: arXiv 2502.04959 (ICML 2025), algorithm 2; the authors' repository danielm1405/iso-merging, `src/utils/iso.py`
(`iso_cts`, common_space_fraction 0.8), and FusionBench `method/isotropic_merging` (scaling factor 1; the authors choose
theirs on validation data). For T task vectors (m, n), k = min(m, n):
    p = round((k - floor(fraction k)) / T) directions for each task, c = k - p T common ones;
    U_c, V_c: the leading c singular directions of sum_i tau_i;
    U_i, V_i: the leading p singular directions of tau_i - U_c U_c^T tau_i;
    merged = mean of those k singular values x polar([U_1 .. U_T U_c]) polar([V_1 .. V_T V_c])^T.
Weights that are no matrices are averaged. What is defined here and not there: directions under `tolerance` of the
largest singular value are left out, since they are arbitrary; p T is at most k; a lone checkpoint is returned as it is
(as Iso-C with one checkpoint); a convolution is a matrix (out, in k k), which the authors average.
"""

import torch
from references.interface import Checkpoints
from references.repeating import as_matrices, plain, repeated
from torch import Tensor

Svd = tuple[Tensor, Tensor, Tensor]  # (m, q), (q,), (q, n)


def leading(matrix: Tensor, q: int, floor: float) -> Svd:
    """Return the leading q singular triplets whose value is above `floor`."""
    U, S, Vh = torch.linalg.svd(matrix, full_matrices=False)
    q = min(q, int((floor < S).sum()))
    return U[:, :q], S[:q], Vh[:q]


def polar(stack: Tensor, tolerance: float) -> Tensor:
    """Return the polar factor of a stack of columns (m, q), on the range of its rows."""
    U, S, Vh = torch.linalg.svd(stack, full_matrices=False)
    kept = tolerance * S[0] < S
    factor: Tensor = U[:, kept] @ Vh[kept]
    return factor


def iso_cts(taus: Tensor, fraction: float, tolerance: float) -> Tensor:
    """Return the merged task vector (m, n) of taus (T, m, n)."""
    T, k = len(taus), min(taus.shape[1:])
    total = taus.sum(0)
    p = min(round((k - int(k * fraction)) / T), k // T)
    common = leading(total, k - p * T, tolerance * float(total.norm()))
    rests = [(tau - common[0] @ common[0].T @ tau, tolerance * float(tau.norm())) for tau in taus]
    parts = [leading(rest, p, floor) for rest, floor in rests] + [common]
    U, S, V = (torch.cat([part[i] if i < 2 else part[i].T for part in parts], dim=-1) for i in range(3))
    if not S.numel():
        return torch.zeros_like(total)
    return S.mean() * polar(U, tolerance) @ polar(V, tolerance).T


def merge(
    given: Checkpoints,
    common_space_fraction: float = 0.8,
    lambda_: float = 1.0,
    others: str = "mean",
    tolerance: float = 1e-5,
) -> dict[str, Tensor]:
    merged = {}
    for name, kind in given.kinds.items():
        taus = repeated(given, name)
        if kind in ("matrix", "convolution") and len(given.taus) > 1 and taus[0].numel():
            batches = torch.stack([as_matrices(tau, kind) for tau in taus], dim=1)  # (b, T, m, n)
            found = [iso_cts(batch, common_space_fraction, tolerance) for batch in batches]
            merged[name] = lambda_ * torch.stack(found).reshape(taus[0].shape)
        else:
            merged[name] = lambda_ * (given.taus[0][name].double() if len(given.taus) == 1 else plain(taus, others))
    return merged
