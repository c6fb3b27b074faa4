"""Consensus Task Arithmetic: only what enough TALL masks agree on is kept of the sum of the task vectors.

Source: arXiv 2405.07813, sections 4 and 5; the authors' repository nik-dim/tall_masks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ...state.records import Totals, Weight
from ._batch import CHUNK, MOST, check_finite
from .batch_interface import MergesAtOnce
from .interface import check_between

ROUNDING = 1e-9  # of a sum of shares that are not whole numbers


def tall_masks(taus: Tensor, tau_mtl: Tensor, tall_mask_lambda: float) -> Tensor:
    """Return where each task's entries are nearer to it than to the base: |tau_t| > lambda |tau_mtl - tau_t|.

    taus: (T, D), tau_mtl: (D,) the sum of the task vectors; result: (T, D), of bool.
    """
    return taus.abs() > tall_mask_lambda * (tau_mtl - taus).abs()


def consensus(taus: Tensor, shares: Tensor, tall_mask_lambda: float, k: float) -> Tensor:
    """Return tau_mtl (D,) where at least k tasks' masks agree, and 0 elsewhere; taus (T, D), shares (T,)."""
    tau_mtl = shares @ taus
    agree = shares @ tall_masks(taus, tau_mtl, tall_mask_lambda).to(shares)
    return tau_mtl.where(agree >= k * (1 - ROUNDING), 0.0)


@dataclass(frozen=True)
class ConsensusTa(MergesAtOnce):
    """Consensus Task Arithmetic; an entry at a time, so that every kind of weight is treated alike.

    A share counts as that many checkpoints. A threshold above the number of checkpoints counts as that number.
    """

    source: ClassVar[str] = "arXiv 2405.07813"

    prun_thre_k: int = 2  # tasks that must agree; 2 removes what no task or one alone uses
    tall_mask_lambda: float = 0.6  # FusionBench's; the authors choose it for each task in 0.2 to 0.6, by its data
    lambda_: float = 0.3  # written lambda in a configuration; task arithmetic's: the authors choose it by data

    def __post_init__(self) -> None:
        check_between("prun_thre_k", self.prun_thre_k, 0, MOST)
        check_between("tall_mask_lambda", self.tall_mask_lambda, 0, MOST)
        check_finite("lambda", self.lambda_)

    def merge(self, taus: Sequence[Tensor], w: Weight, shares: Sequence[float], theta0: Tensor) -> Tensor:
        """Return the merged task vector of one weight, whatever its kind."""
        counted = torch.tensor(shares, dtype=torch.float64, device=taus[0].device)
        k = min(float(self.prun_thre_k), sum(shares))
        chunks = zip(*(torch.split(tau.reshape(-1), CHUNK) for tau in taus), strict=True)
        merged = [consensus(torch.stack(chunk).double(), counted, self.tall_mask_lambda, k) for chunk in chunks]
        return torch.cat([part.to(taus[0].dtype) for part in merged]).reshape(w.shape)

    def scale(self, totals: Totals) -> float:
        """Return lambda."""
        return self.lambda_
