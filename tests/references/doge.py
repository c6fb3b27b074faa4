"""DOGE on task arithmetic in batch, transcribed in float64: data-free adaptive projective gradient descent.

Source: arXiv 2501.01230 (ICML 2025), sections 3.2 to 3.4; FusionBench `method/doge_ta/doge_ta.py` (by the authors) and
`config/method/doge_ta` (subspace 6, K 30, lamda 0.07; Adam, lr 1e-4, 400 steps). For T task vectors (m, n) of one
weight, k = min(m, n), l_i = lambda / norm(tau_i):
    loss(D) = sum_j sum_rows <tau_j, tau_j - sum_i l_i (tau_i + D)>^2, the inner product row by row;
    P: projection on the leading floor(k / subspace) left singular directions of the T stacks of each task's leading
    floor(k / T) ones; each step of Adam is given the gradient less P times it;
    merged = sum_i l_i (tau_i + D) * (|tau_i| among the largest share `density` of task i).
The authors take that share over all weights of a checkpoint (`over="model"`), mergd weight by weight
(`over="weight"`, the default here); all else is per weight there too.
They leave every weight that is not a matrix of the encoder as the base model has it (`others="base"`); here such
weights are averaged by default. What is defined here and not there: a checkpoint whose task vector is zero in a weight
is not there for it (0 / 0 in the code); directions under `tolerance` of the largest are left out, and
those that cannot be told from the last of the shared ones taken in, since which would be arbitrary; a lone checkpoint is returned as it is: all directions of its stack are alike, so that P would be arbitrary,
and the weight's norm would become lambda.
"""

from collections.abc import Mapping

import torch
from references.interface import Checkpoints
from references.repeating import as_matrices, plain, repeated
from torch import Tensor


def left(matrix: Tensor, q: int, tolerance: float) -> Tensor:
    """Return the leading q left singular directions (m, q), without those that are arbitrary."""
    U, S, _ = torch.linalg.svd(matrix, full_matrices=False)
    leading: Tensor = U[:, : min(q, int((tolerance * S[0] < S).sum()))] if S.numel() else U
    return leading


def alike(stack: Tensor, q: int) -> int:
    """Return q, or more where the singular values after the q-th are no other (to 1e-6) than that."""
    S = torch.linalg.svdvals(stack)
    return int((S[q - 1] * (1 - 1e-6) <= S).sum()) if 0 < q <= len(S) else q


def modification(taus: Tensor, lamdas: Tensor, P: Tensor, steps: int, lr: float) -> Tensor:
    """Return D (m, n) for taus (T, m, n), lamdas (T, 1, 1) and the projection P (m, m)."""
    D = torch.zeros_like(taus[0], requires_grad=True)
    optimizer = torch.optim.Adam([D], lr=lr)
    for _ in range(steps):
        optimizer.zero_grad()
        gaps = (taus * (taus - (lamdas * (taus + D)).sum(0))).sum(2)  # (T, m)
        (gaps**2).sum().backward()  # type: ignore[no-untyped-call]
        assert D.grad is not None
        D.grad -= P @ D.grad
        optimizer.step()
    return D.detach()


def adjusted(taus: Tensor, lambda_: float, subspace: int, steps: int, lr: float, tolerance: float) -> Tensor:
    """Return l_i (tau_i + D) (T, m, n), before the masks; zero for a task vector that is zero."""
    changed = taus.flatten(1).norm(dim=1) > 0
    found = torch.zeros_like(taus)
    if changed.any():
        some = taus[changed]
        T, k = len(some), min(some.shape[1:])
        lamdas = lambda_ / some.flatten(1).norm(dim=1).reshape(-1, 1, 1)
        stack = torch.cat([left(tau, k // T, tolerance) for tau in some], dim=1)
        shared = left(stack, alike(stack, k // subspace), tolerance)
        found[changed] = lamdas * (some + modification(some, lamdas, shared @ shared.T, steps, lr))
    return found


def largest(flat: Tensor, density: float) -> Tensor:
    """Return where |flat| (D,) is among its largest share `density`."""
    kth = max(len(flat) - int(len(flat) * density), 1)
    return flat.abs() >= flat.abs().kthvalue(kth).values


def masks_of(taus: Mapping[str, Tensor], density: float, over: str) -> dict[str, Tensor]:
    """Return one task's masks, by weight."""
    if over == "weight":
        return {name: largest(tau.flatten(), density).reshape(tau.shape) for name, tau in taus.items()}
    flat = largest(torch.cat([tau.flatten() for tau in taus.values()]), density)
    parts = torch.split(flat, [tau.numel() for tau in taus.values()])
    return {name: part.reshape(tau.shape) for (name, tau), part in zip(taus.items(), parts, strict=True)}


def merge(
    given: Checkpoints,
    lambda_: float = 0.07,
    subspace: int = 6,
    density: float = 0.3,
    steps: int = 400,
    lr: float = 1e-4,
    others: str = "mean",
    over: str = "weight",
    tolerance: float = 1e-5,
) -> dict[str, Tensor]:
    if len(given.taus) == 1:
        return {name: given.taus[0][name].double() for name in given.kinds}
    matrices = {n: k for n, k in given.kinds.items() if k in ("matrix", "convolution") and given.taus[0][n].numel()}
    merged = {name: plain(repeated(given, name), others) for name in given.kinds if name not in matrices}
    tasks = {name: repeated(given, name) for name in matrices}
    count = len(next(iter(tasks.values()), []))
    masks = [masks_of({name: taus[i] for name, taus in tasks.items()}, density, over) for i in range(count)]
    for name, kind in matrices.items():
        batches = torch.stack([as_matrices(tau, kind) for tau in tasks[name]], dim=1)  # (b, T, m, n)
        found = torch.stack([adjusted(batch, lambda_, subspace, steps, lr, tolerance) for batch in batches], dim=1)
        kept = torch.stack([mask[name] for mask in masks])
        merged[name] = (found.reshape(kept.shape) * kept).sum(0)
    return merged
