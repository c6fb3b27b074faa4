"""WUDI-Merging in batch, float64: Adam from the sum of the task vectors, over a loss that sees every checkpoint.

Source: "Whoever Started the Interference Should End It: Guiding Data-Free Model Merging via Task Vectors", arXiv
2503.08099; FusionBench `method/WUDI/wudi.py`. For each matrix the loss is the sum over the checkpoints i of
||(X - tau_i) tau_i^T||^2 / ||tau_i||^2, started at X = sum of tau_i, 300 steps of Adam (learning rate 1e-5, no weight
decay, torch's defaults else). All but matrices are averaged; there is no coefficient.

Beside what is published: `step` "relative" takes everything in units of r = norm(sum) / sqrt(m n T), the task vectors' root
mean square if they are orthogonal, so that the learning rate means the same for any checkpoints; `solver` "ridge" is
the loss's closed form, B (G + e I)^-1 with e = epsilon times the mean eigenvalue of G. A task vector that is zero is left
out (published: not a number).
"""

from math import sqrt

import torch
from references.interface import Checkpoints
from references.matrices import each_matrix, weighted_sum
from torch import Tensor


def loss(X: Tensor, taus: list[Tensor], shares: list[float]) -> Tensor:
    """Return the interference with all checkpoints, as published."""
    terms = [((X - tau) @ tau.T).square().sum() / tau.square().sum() for tau in taus]
    return weighted_sum(terms, shares)


def by_adam(taus: list[Tensor], shares: list[float], steps: int, lr: float) -> Tensor:
    """Return X after the steps, by torch's own Adam and its own gradient."""
    X = torch.nn.Parameter(weighted_sum(taus, shares))
    adam = torch.optim.Adam([X], lr=lr)
    for _ in range(steps):
        adam.zero_grad()
        loss(X, taus, shares).backward()  # type: ignore[no-untyped-call]
        adam.step()
    return X.detach()


def in_units(taus: list[Tensor], shares: list[float], steps: int, lr: float) -> Tensor:
    """Return what Adam finds for the task vectors over their root mean square, times it."""
    total = weighted_sum(taus, shares)
    unit = float(total.norm()) / sqrt(total.numel() * sum(shares)) or 1.0
    return unit * by_adam([tau / unit for tau in taus], shares, steps, lr)


def by_ridge(taus: list[Tensor], shares: list[float], epsilon: float) -> Tensor:
    """Return B (G + e I)^-1, with B the sum of tau tau^T tau / ||tau||^2 and G that of tau^T tau / ||tau||^2."""
    n = taus[0].shape[1]
    G = weighted_sum([tau.T @ tau / tau.square().sum() for tau in taus], shares)
    B = weighted_sum([tau @ tau.T @ tau / tau.square().sum() for tau in taus], shares)
    e = epsilon * float(torch.linalg.eigvalsh(G).mean())
    X: Tensor = B @ torch.linalg.inv(G + e * torch.eye(n, dtype=G.dtype))
    return X


def merge(given: Checkpoints, solver: str = "adam", steps: int = 300, lr: float = 1e-5, step: str = "absolute",
          epsilon: float = 0.1, others: str = "mean") -> dict[str, Tensor]:  # fmt: skip
    """Return the published task vectors."""

    def formula(taus: list[Tensor], shares: list[float]) -> Tensor:
        if solver == "ridge":
            return by_ridge(taus, shares, epsilon)
        return (in_units if step == "relative" else by_adam)(taus, shares, steps, lr)

    return each_matrix(given, formula, others, skip_zero=True)
