"""WUDI: the matrix that disturbs each checkpoint's own outputs least, by Adam's trajectory or by the closed form.

Source: arXiv 2503.08099 ("Whoever Started the Interference Should End It: Guiding Data-Free Model Merging via Task Vectors");
FusionBench `method/WUDI`. The loss, sum of ||(X - tau_i) tau_i^T||^2 / ||tau_i||^2, has the gradient 2 (X G - B) with
G = sum tau_i^T tau_i / ||tau_i||^2 and B = sum tau_i tau_i^T tau_i / ||tau_i||^2: every step needs only their sums.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from ...state.records import Counts, Weight
from ._gram import Gram, Pull
from ._matrices import MergesMatrices
from ._spectral import ridge
from .interface import Others, Slots, Statistic, TaskSum, check_between, check_one_of

Solver = Literal["adam", "ridge"]
Step = Literal["absolute", "relative"]

BETA_1, BETA_2, TINY = 0.9, 0.999, 1e-8  # torch's defaults, as published
STILL = 1e-6  # a gradient under this share of B is the rounding of float32 sums


def adam(S: Tensor, B: Tensor, G: Tensor, steps: int, lr: float) -> Tensor:
    """Return X after so many steps of Adam from S; S, B and X are (m, n), G (n, n), all float64.

    Rows do not see each other. One that nothing disturbs, as of a checkpoint alone, stays: its gradient is but rounding, which
    Adam would divide by its own size.
    """
    X, first, second = S.clone(), torch.zeros_like(S), torch.zeros_like(S)
    disturbed = (S @ G - B).norm(dim=1, keepdim=True) > STILL * B.norm(dim=1, keepdim=True)  # (m, 1)
    for t in range(1, steps + 1):
        gradient = 2 * (X @ G - B) * disturbed
        first = BETA_1 * first + (1 - BETA_1) * gradient
        second = BETA_2 * second + (1 - BETA_2) * gradient.square()
        X -= lr / (1 - BETA_1**t) * first / ((second / (1 - BETA_2**t)).sqrt() + TINY)
    return X


def rms(S: Tensor, G: Tensor) -> float:
    """Return the task vectors' root mean square, were they orthogonal: ||S|| / sqrt(m n T), T being the trace of G."""
    return float(S.norm()) / sqrt(S.numel() * float(G.trace())) or 1.0


@dataclass(frozen=True)
class Wudi(MergesMatrices):
    """Starts from the sum of the task vectors and takes Adam's steps down the interference, exactly as published.

    - `solver` "ridge" takes the loss's closed form B (G + e I)^-1 instead, e being epsilon x the mean eigenvalue of G.
    - `step` "relative" counts lr in units of the task vectors' root mean square, so that it fits any checkpoints; lr
      should then be near 0.02.

    A checkpoint that does not change a matrix has no say in it (published: not a number).
    """

    source: ClassVar[str] = "arXiv 2503.08099; FusionBench method/WUDI"

    solver: Solver = "adam"
    steps: int = 300
    lr: float = 1e-5
    step: Step = "absolute"
    epsilon: float = 0.1
    others: Others = "mean"

    def __post_init__(self) -> None:
        check_one_of("solver", self.solver, get_args(Solver))
        check_between("steps", self.steps, 1, 100_000)
        check_between("lr", self.lr, 0, 1e3)
        check_one_of("step", self.step, get_args(Step))
        check_between("epsilon", self.epsilon, 1e-6, 1e6)
        check_one_of("others", self.others, get_args(Others))

    def of_matrix(self, w: Weight) -> tuple[Statistic, ...]:
        """Return S, B and G; the closed form needs no S."""
        return (Pull(), Gram("in")) if self.solver == "ridge" else (TaskSum(), Pull(), Gram("in"))

    def matrix(self, kept: Mapping[Statistic, Slots], counts: Counts) -> Tensor:
        """Return X of one matrix."""
        B, G = kept[Pull()]["pull"], kept[Gram("in")]["gram"]
        if not B.any():
            return B
        if self.solver == "ridge":
            return ridge(B, G, self.epsilon)
        S = kept[TaskSum()]["sum"].double()
        unit = rms(S, G) if self.step == "relative" else 1.0
        return unit * adam(S / unit, B / unit, G, self.steps, self.lr)
