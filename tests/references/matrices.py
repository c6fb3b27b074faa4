"""How the batch references of the matrix rules walk a model: each matrix by its formula, all other weights plainly."""

from collections.abc import Callable, Sequence

import torch
from references.interface import Checkpoints
from torch import Tensor

Formula = Callable[[list[Tensor], list[float]], Tensor]  # the task vectors (m, n) and their shares -> merged (m, n)


def each_matrix(given: Checkpoints, formula: Formula, others: str, skip_zero: bool = False) -> dict[str, Tensor]:
    """Merge every matrix of every weight by the formula; `skip_zero`: without the checkpoints that leave it alone."""
    merged = {}
    for name, kind in given.kinds.items():
        taus = [tau[name].double() for tau in given.taus]
        if kind in ("matrix", "convolution"):
            merged[name] = by_formula(taus, list(given.counted), kind, formula, skip_zero)
        else:
            merged[name] = plainly(taus, list(given.counted), others)
    return merged


def weighted_sum(taus: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
    """Return the sum of share x task vector."""
    total = torch.zeros_like(taus[0])
    for tau, share in zip(taus, shares, strict=True):
        total = total + share * tau
    return total


def one_by_one(taus: Sequence[Tensor], shares: Sequence[float]) -> list[tuple[Tensor, float]]:
    """Return what a recurrence folds: each task vector as often as its share says, the rest of the share as a weight."""
    folds = []
    for tau, share in zip(taus, shares, strict=True):
        folds += [(tau, 1.0)] * int(share) + ([(tau, share % 1)] if share % 1 else [])
    return folds


def plainly(taus: Sequence[Tensor], shares: Sequence[float], others: str) -> Tensor:
    """Return the sum or the mean."""
    total = weighted_sum(taus, shares)
    return total / sum(shares) if others == "mean" else total


def by_formula(taus: Sequence[Tensor], shares: Sequence[float], kind: str, formula: Formula, skip_zero: bool) -> Tensor:
    """A convolution is one matrix (out, in * k * k); of a batch, each matrix is merged by itself."""
    shape = taus[0].shape
    if not taus[0].numel():
        return torch.zeros_like(taus[0])
    sides = (shape[0], shape[1:].numel()) if kind == "convolution" else shape[-2:]
    stacks = [tau.reshape(-1, *sides) for tau in taus]
    merged = []
    for i in range(stacks[0].shape[0]):
        there = [
            (stack[i], share)
            for stack, share in zip(stacks, shares, strict=True)
            if not skip_zero or bool(stack[i].any())
        ]
        matrices, counted = [tau for tau, _ in there], [share for _, share in there]
        merged.append(formula(matrices, counted) if there else torch.zeros_like(stacks[0][i]))
    return torch.stack(merged).reshape(shape)
