"""DOGE: a modification of all task vectors, found by gradient descent off the tasks' shared subspace.

Source: arXiv 2501.01230, section 3; FusionBench `method/doge_ta` (by the authors), whose configuration the defaults are.
Its loss is quadratic and its gradient is written out. The code takes the largest entries over the whole checkpoint;
here each weight keeps its own share `density`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from ...state.records import Weight
from ._batch import MOST, check_finite, is_matrix, leading, plain, row_slices, total
from ._matrices import matrices
from ._sums import norm
from .batch_interface import MergesAtOnce
from .interface import check_between, check_one_of

Others = Literal["mean", "sum", "base"]  # how weights that are not matrices are read; base: the code leaves them alone
Taus = Sequence[Tensor]
Shares = Sequence[float]
BETAS, EPSILON = (0.9, 0.999), 1e-8  # Adam's
ALIKE = 1e-6  # singular values that are nearer to each other are one


def shared_subspace(taus: Taus, shares: Shares, subspace: int) -> Tensor:
    """Return P (m, q), float64 orthonormal columns: the leading directions of the tasks' own leading left ones.

    taus: (m, n) each, k = min(m, n): floor(k / T) directions of each task, floor(k / subspace) of all; and those that
    cannot be told from the last one, as where all checkpoints are alike: which of them came first would be chance.
    """
    k = min(taus[0].shape)
    own = int(k / sum(shares))
    stack = torch.cat([sqrt(share) * leading(tau, own)[0] for tau, share in zip(taus, shares, strict=True)], 1)
    P, S, _ = leading(stack, k)
    q = min(k // subspace, len(S))
    return P[:, : int((S[q - 1] * (1 - ALIKE) <= S).sum()) if q else 0]


def gap(tau: Tensor, merged: Tensor) -> Tensor:
    """Return <tau, tau - merged> row by row (m, 1), float64; tau (m, n), merged (m, n) float64."""
    pairs = ((tau[rows].double(), merged[rows]) for rows in row_slices(tau))
    return torch.cat([(mine * (mine - all_)).sum(1, keepdim=True) for mine, all_ in pairs])


def gradient(taus: Taus, gaps: Taus, shares: Shares, Lambda: float, D: Tensor) -> Tensor:
    """Return the gradient (m, n) of sum_j sum_rows <tau_j, tau_j - sum_i lambda_i (tau_i + D)>^2 at D (m, n).

    taus: (m, n) each; gaps: (m, 1) each, the inner products at D = 0; Lambda: the sum of the lambda_i.
    """
    out = torch.zeros_like(D)
    for rows in row_slices(D):
        for tau, gap_0, share in zip(taus, gaps, shares, strict=True):
            left = gap_0[rows] - Lambda * (tau[rows] * D[rows]).sum(1, keepdim=True)  # (rows, 1)
            out[rows].addcmul_(tau[rows], left, value=-2 * Lambda * share)
    return out


def modification(taus: Taus, shares: Shares, lamdas: Shares, P: Tensor, steps: int, lr: float) -> Tensor:
    """Return D (m, n) after `steps` of Adam, each given the gradient less P P^T of it; P (m, q).

    In the task vectors' dtype: after 400 steps float32 differs from float64 by 2e-6, in half the time and memory.
    """
    weights = [share * lamda for share, lamda in zip(shares, lamdas, strict=True)]
    merged = total(taus, weights)
    gaps = [gap(tau, merged).to(tau.dtype) for tau in taus]
    del merged
    P = P.to(taus[0].dtype)
    D, mean, square = torch.zeros_like(taus[0]), torch.zeros_like(taus[0]), torch.zeros_like(taus[0])
    for step in range(1, steps + 1):
        g = gradient(taus, gaps, shares, sum(weights), D)
        g -= P @ (P.T @ g)
        mean.lerp_(g, 1 - BETAS[0])
        square.mul_(BETAS[1]).addcmul_(g, g, value=1 - BETAS[1])
        root = (square / (1 - BETAS[1] ** step)).sqrt_().add_(EPSILON)
        D.addcdiv_(mean, root, value=-lr / (1 - BETAS[0] ** step))
    return D


def largest(tau: Tensor, density: float) -> Tensor:
    """Return where |tau| is among its largest share `density`, in tau's shape."""
    magnitude = tau.abs()
    kth = max(tau.numel() - int(tau.numel() * density), 1)
    return magnitude >= magnitude.reshape(-1).kthvalue(kth).values


@dataclass(frozen=True)
class Doge(MergesAtOnce):
    """DOGE on task arithmetic, for matrices, each of a batch, and convolutions as (out, in x k x k).

    Each task vector is brought to the norm `lambda`, weight by weight, and modified; of each, the entries that were
    its largest are added up. A share counts as that many checkpoints; a task vector that is zero here does not count;
    a lone checkpoint is merged to itself.
    """

    source: ClassVar[str] = "arXiv 2501.01230"

    lambda_: float = 0.07  # written lambda in a configuration
    subspace: int = 6  # the shared subspace is the whole divided by this
    density: float = 0.3  # the code's K, 30 per cent
    steps: int = 400
    lr: float = 1e-4
    others: Others = "mean"

    def __post_init__(self) -> None:
        check_finite("lambda", self.lambda_)
        check_between("subspace", self.subspace, 1, MOST)
        check_between("density", self.density, 0, 1)
        check_between("steps", self.steps, 0, MOST)
        check_finite("lr", self.lr)
        check_one_of("others", self.others, get_args(Others))

    def merge(self, taus: Taus, w: Weight, shares: Shares, theta0: Tensor) -> Tensor:
        """Return the merged task vector of one weight."""
        if len(taus) == 1:
            return taus[0].clone()
        if not is_matrix(w):
            return torch.zeros_like(taus[0]) if self.others == "base" else plain(taus, shares, self.others)
        merged = torch.zeros_like(taus[0])
        masks = [matrices(largest(tau, self.density), w) for tau in taus]
        for i, out in enumerate(matrices(merged, w)):
            news = [(matrices(tau, w)[i], mask[i], share) for tau, mask, share in zip(taus, masks, shares, strict=True)]
            self._add_matrix(out, [one for one in news if one[0].any()])
        return merged

    def _add_matrix(self, out: Tensor, news: Sequence[tuple[Tensor, Tensor, float]]) -> None:
        """Add sum lambda_i (tau_i + D) over each task's largest entries to `out`; news: (tau, mask, share)."""
        if not news:
            return
        taus, shares = [tau for tau, _, _ in news], [share for _, _, share in news]
        lamdas = [self.lambda_ / norm(tau) for tau in taus]
        P = shared_subspace(taus, shares, self.subspace)
        D = modification(taus, shares, lamdas, P, self.steps, self.lr)
        for (tau, mask, share), lamda in zip(news, lamdas, strict=True):
            out.add_((tau + D).where(mask, 0.0), alpha=share * lamda)
