"""OPCM as its recurrence gives it (`opcm_published`), for the checkpoints that every batch reference is given.

Source: arXiv 2501.09522 and FusionBench `method/opcm`; the recurrence is that of opcm_published.py. Differences: a convolution
is one matrix, of a batch each matrix is projected by itself; checkpoints that equal the base and come first
are counted in the mean norm but divide nothing by zero; where no earlier checkpoint changed a matrix, the newcomer is added
whole (published: its coordinates in the basis of the identity lose their diagonal); a share of 2 is two folds, of what is
left of a share under 1 so much is added, and norms count in the mean as often as their shares say. Variant `orthogonal` is
this project's: `block`, and then the component along the accumulator's tail taken away.
"""

from math import sqrt

import torch
from references.interface import Checkpoints
from references.matrices import by_formula, one_by_one, plainly
from references.opcm_published import project
from torch import Tensor


def merge(given: Checkpoints, alpha: float = 0.5, variant: str = "block", others: str = "sum") -> dict[str, Tensor]:
    """Return the published task vectors; the order of the checkpoints matters."""

    def formula(taus: list[Tensor], shares: list[float]) -> Tensor:
        A = torch.zeros_like(taus[0])
        for tau, share in one_by_one(taus, shares):
            A = A + share * (project(A, tau, alpha, variant) if bool(A.any()) else tau)
        return A

    A = {
        name: by_formula([tau[name].double() for tau in given.taus], list(given.counted), kind, formula, False)
        if kind in ("matrix", "convolution")
        else plainly([tau[name].double() for tau in given.taus], list(given.counted), others)
        for name, kind in given.kinds.items()
    }
    norms = [sqrt(sum(float(one.double().square().sum()) for one in tau.values())) for tau in given.taus]
    mean = sum(share * norm for share, norm in zip(given.counted, norms, strict=True)) / sum(given.counted)
    size = sqrt(sum(float(one.square().sum()) for one in A.values()))
    scale = mean / size if size and mean else 1.0
    return {name: scale * one for name, one in A.items()}
