"""The published OPCM recurrence, transcribed in float64: what mergd's OPCM is held against.

Source: arXiv 2501.09522, and FusionBench `method/opcm`. It carries the merged weights and lambda and takes the full
singular value decomposition, as they do, and shares no code with what it judges.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Weights = Mapping[str, Tensor]


@dataclass(frozen=True)
class Published:
    """What the recurrence carries from one checkpoint to the next."""

    merged: Weights  # theta_merged^(t), float64
    scale: float  # lambda_t
    norms: tuple[float, ...]  # ||tau_i||, i <= t


def split_rank(S: Tensor, alpha: float) -> int:
    """Return the first 0-based index where cumsum(S) / sum(S) > alpha; S (k,) descending."""
    return int((S.cumsum(0) / S.sum() > alpha).int().argmax())


def project(merged: Tensor, tau: Tensor, alpha: float, variant: str) -> Tensor:
    """Return U X V^T, where X = U^T tau V with the variant's entries zeroed; merged and tau are (m, n)."""
    U, S, Vh = torch.linalg.svd(merged, full_matrices=True)  # (m, m), (k,), (n, n)
    r = split_rank(S, alpha)
    X = U.T @ tau @ Vh.T  # (m, n)
    if variant == "paper":
        X[:r, :] = 0
        X[:, :r] = 0
    else:
        X[:r, :r] = 0
    if variant in ("block_diagonal", "paper"):
        X.fill_diagonal_(0)
    if variant == "orthogonal" and merged.any():
        tail = torch.zeros_like(X)  # the accumulator's tail in this basis
        tail.diagonal()[r:] = S[r:]
        X = X - (tail * X).sum() / tail.square().sum() * tail
    cleaned: Tensor = U @ X @ Vh
    return cleaned


def project_each(merged: Tensor, tau: Tensor, alpha: float, variant: str) -> Tensor:
    """Project a matrix, or each matrix of a batch (..., m, n) by itself."""
    pairs = zip(merged.reshape(-1, *merged.shape[-2:]), tau.reshape(-1, *tau.shape[-2:]), strict=True)
    return torch.stack([project(one, news, alpha, variant) for one, news in pairs]).reshape(tau.shape)


def norm(weights: Weights) -> float:
    """Return the Frobenius norm of a whole model."""
    return float(torch.cat([weight.flatten() for weight in weights.values()]).norm())


def fold(base: Weights, before: Published | None, theta: Weights, matrices: Collection[str], alpha: float,
         variant: str) -> Published:  # fmt: skip
    """Return what is carried after checkpoint `theta`; the first becomes the merged model as it is."""
    tau = {name: theta[name] - base[name] for name in base}
    if before is None:
        return Published(theta, 1.0, (norm(tau),))
    total = {}
    for name in base:
        merged = before.merged[name] - base[name]
        cleaned = project_each(merged, tau[name], alpha, variant) if name in matrices else tau[name]
        total[name] = before.scale * merged + cleaned
    norms = (*before.norms, norm(tau))
    scale = norm(total) / (sum(norms) / len(norms))
    return Published({name: base[name] + total[name] / scale for name in base}, scale, norms)


def published_task_vectors(
    base: Weights, thetas: Sequence[Weights], matrices: Collection[str], alpha: float, variant: str
) -> list[Weights]:
    """Return theta_merged^(t) - base after each checkpoint."""
    state: Published | None = None
    task_vectors: list[Weights] = []
    for theta in thetas:
        state = fold(base, state, theta, matrices, alpha, variant)
        task_vectors.append({name: state.merged[name] - base[name] for name in base})
    return task_vectors
