"""Iso-C: the sum of the task vectors, made to count alike in all its directions.

Source: arXiv 2502.04959 ("No Task Left Behind: Isotropic Model Merging with Common and Task-Specific Subspaces"), isotropic
merging in common subspace; FusionBench `method/isotropic_merging`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, get_args

import torch
from torch import Tensor

from ...state.records import Counts, Totals, Weight
from ._matrices import MergesMatrices
from ._spectral import thin_svd
from .interface import Others, Slots, Statistic, TaskSum, check_between, check_one_of


def isotropic(Delta: Tensor) -> Tensor:
    """Return mean(S) U V^T of Delta = U S V^T, (m, n): over the directions that are there, not those of rounding."""
    U, S, V = thin_svd(Delta)
    return S.mean() * U @ V.T if len(S) else torch.zeros_like(Delta)


@dataclass(frozen=True)
class IsoC(MergesMatrices):
    """Replaces every singular value of the summed task vectors by their mean.

    Directions under 1e-5 of the largest are left out (published: flattened with all others, which gives the rounding of a
    rank-deficient sum most of the energy), and one checkpoint alone is returned as it is (published: flattened).
    """

    source: ClassVar[str] = "arXiv 2502.04959; FusionBench method/isotropic_merging"

    lambda_: float = 1.0
    others: Others = "mean"

    def __post_init__(self) -> None:
        check_between("lambda", self.lambda_, -1e6, 1e6)
        check_one_of("others", self.others, get_args(Others))

    def of_matrix(self, w: Weight) -> tuple[Statistic, ...]:
        """Return the sum of the task vectors."""
        return (TaskSum(),)

    def matrix(self, kept: Mapping[Statistic, Slots], counts: Counts) -> Tensor:
        """Return the isotropic sum; of a lone checkpoint that counts no more than once, the sum as it is."""
        total = kept[TaskSum()]["sum"]
        return total if counts.folded <= 1 and counts.shares <= 1 else isotropic(total)

    def scale(self, totals: Totals) -> float:
        """Return lambda."""
        return self.lambda_
