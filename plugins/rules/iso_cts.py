"""Iso-CTS: one singular value for all of the common directions and of each task's own.

Source: arXiv 2502.04959, algorithm 2; the authors' repository danielm1405/iso-merging, `src/utils/iso.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from typing import ClassVar, get_args

import torch
from torch import Tensor

from ...state.records import Totals, Weight
from ._batch import check_finite, is_matrix, leading, plain, polar, total
from ._matrices import matrices
from ._spectral import RANK_TOLERANCE
from ._sums import norm
from .batch_interface import MergesAtOnce
from .interface import Others, check_between, check_one_of


def directions(k: int, T: float, common_space_fraction: float) -> tuple[int, int]:
    """Return how many directions are common and how many are each task's own, of k with T tasks: c + T p = k."""
    p = min(round((k - int(k * common_space_fraction)) / T), int(k / T))
    return max(0, round(k - T * p)), p


def iso_cts(taus: Sequence[Tensor], shares: Sequence[float], common_space_fraction: float) -> Tensor:
    """Return the merged task vector (m, n), float64: mean(S) U V^T.

    taus: (m, n) each. U (m, k), V (n, k): the leading directions of the sum of the task vectors, and each task's own
    in what those leave of it, made orthonormal; S (k,) their singular values.
    """
    M = total(taus, shares)  # (m, n)
    c, p = directions(min(M.shape), sum(shares), common_space_fraction)
    U_c, S_c, V_c = leading(M, c, RANK_TOLERANCE * norm(M))
    Us, Vs, summed, count = [U_c], [V_c], float(S_c.sum()), float(len(S_c))
    for tau, share in zip(taus, shares, strict=True):
        D = tau.double()
        U, S, V = leading(D - U_c @ (U_c.T @ D), p, RANK_TOLERANCE * norm(D))
        Us.append(sqrt(share) * U)  # as if these columns were there `share` times
        Vs.append(sqrt(share) * V)
        summed, count = summed + share * float(S.sum()), count + share * len(S)
    return summed / count * polar(torch.cat(Us, 1)) @ polar(torch.cat(Vs, 1)).T if count else torch.zeros_like(M)


@dataclass(frozen=True)
class IsoCts(MergesAtOnce):
    """Iso-CTS for matrices, each of a batch, and convolutions as (out, in x k x k); `others` for the rest.

    A share counts as that many checkpoints. With more checkpoints than directions to go round, all are common: Iso-C.
    A lone checkpoint is merged to itself, not flattened.
    """

    source: ClassVar[str] = "arXiv 2502.04959"

    common_space_fraction: float = 0.8
    lambda_: float = 1.0  # written lambda in a configuration; the authors search it, FusionBench has 1
    others: Others = "mean"

    def __post_init__(self) -> None:
        check_between("common_space_fraction", self.common_space_fraction, 0, 1)
        check_finite("lambda", self.lambda_)
        check_one_of("others", self.others, get_args(Others))

    def merge(self, taus: Sequence[Tensor], w: Weight, shares: Sequence[float], theta0: Tensor) -> Tensor:
        """Return the merged task vector of one weight."""
        if len(taus) == 1:
            return taus[0].clone()
        if not is_matrix(w):
            return plain(taus, shares, self.others)
        stacks = zip(*(matrices(tau, w) for tau in taus), strict=True)
        merged = [iso_cts(stack, shares, self.common_space_fraction) for stack in stacks]
        return torch.stack(merged).reshape(w.shape).to(taus[0].dtype)

    def scale(self, totals: Totals) -> float:
        """Return lambda."""
        return self.lambda_
