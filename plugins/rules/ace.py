"""ACE-Merging: each checkpoint weighted by the input covariance that its own task vector lets one estimate.

Source: arXiv 2603.02945 ("ACE-Merging: Data-Free Model Merging with Adaptive Covariance Estimation"), and the authors' code, unravel-xu/
ACE-Merging, `src/merge/strategy.py`, which is followed where the two could differ. For task vectors W_t (m, n) and
W~_t, the same less the mean of its rows: Sigma_t = W~_t^T W~_t, and merged = (sum W~_t Sigma_t) (sum Sigma_t + prior)^-1. Whether
the covariances are first brought to trace 1 depends on how unlike the norms of all checkpoints are, so that both sums are kept.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, get_args

import torch
from torch import Tensor

from ...state.records import Counts, SlotSpec, Weight
from ._matrices import MatrixSum, MergesMatrices, matrices, sides, stacked
from ._spectral import thin_svd
from .interface import Others, Slots, Statistic, Update, check_between, check_one_of

TINY = 1e-12  # the authors'
COUNTED = ("T", "traces", "logs", "squared_logs", "per_trace")


def terms(W: Tensor) -> Slots:
    """Return what one task vector (m, n) adds to each sum; nothing if it is zero."""
    W = W.double()
    trace = W.square().sum()
    centred = W - W.mean(0)  # W~
    Sigma = centred.T @ centred  # (n, n)
    per_trace = 1 / (Sigma.trace() + TINY)
    log = (trace + TINY).log()
    found = {
        "W": W,
        "W_per_trace": centred * per_trace,
        "pull": centred @ Sigma,
        "pull_per_trace": centred @ Sigma * per_trace,
        "Sigma": Sigma,
        "Sigma_per_trace": Sigma * per_trace,
        "means": W.mean(0) @ Sigma * per_trace,  # (n,): what W Sigma has over W~ Sigma, in every row
    } | dict(zip(COUNTED, (torch.ones_like(trace), trace, log, log**2, per_trace), strict=True))
    return found if trace > 0 else {name: torch.zeros_like(one) for name, one in found.items()}


def heterogeneity(kept: Slots) -> float:
    """Return gamma = var(log ||W_t||^2) / mean(log ||W_t||^2)^2, the variance being that of a sample."""
    T, mean = float(kept["T"]), float(kept["logs"]) / float(kept["T"])
    squares = float(kept["squared_logs"]) - T * mean**2
    return max(squares, 0.0) / (T - 1) / (mean**2 + TINY) if T > 1 else 0.0


def weighted(kept: Slots, epsilon: float, unlike: bool) -> tuple[Tensor, Tensor]:
    """Return W_0 = (sum W~_t (Sigma_t + e_t I)) (sum (Sigma_t + e_t I) + 1 c^T)^-1, and the first sum of its second factor."""
    T, W = kept["T"], kept["W"]
    pull, Sigma = (kept["pull_per_trace"], kept["Sigma_per_trace"]) if unlike else (kept["pull"], kept["Sigma"])
    centred, ridges = (kept["W_per_trace"], kept["per_trace"]) if unlike else (W - W.mean(0), T)
    prior = Sigma.mean(0) / (kept["traces"] / T + TINY if unlike else 1.0)  # c, (n,): added to every row
    total = Sigma + epsilon * ridges * torch.eye(len(Sigma), dtype=Sigma.dtype, device=Sigma.device)
    return torch.linalg.solve(total + prior, pull + epsilon * centred, left=False), total


def refinement(fused: Tensor, fraction: float) -> Tensor:
    """Return the leading directions of a matrix (m, n), those that are there, each with the mean of their singular values."""
    U, S, V = thin_svd(fused)
    k = min(int(min(fused.shape) * fraction), len(S))
    return S[:k].mean() * U[:, :k] @ V[:, :k].T if k else torch.zeros_like(fused)


@dataclass(frozen=True)
class Covariances(MatrixSum):
    """What the closed form needs, for either case: 4 slots of the weight's size and 2 of (n, n), float64."""

    def slots(self, w: Weight) -> Mapping[str, SlotSpec]:
        """Two sums of the task vectors, and of all that is made of their covariances; five numbers."""
        batch, m, n = sides(w)
        shapes = dict.fromkeys(("W", "W_per_trace", "pull", "pull_per_trace"), (*batch, m, n))
        shapes |= dict.fromkeys(("Sigma", "Sigma_per_trace"), (*batch, n, n)) | {"means": (*batch, n)}
        return {name: SlotSpec(shape, "F64") for name, shape in (shapes | dict.fromkeys(COUNTED, batch)).items()}

    def term(self, u: Update, w: Weight) -> Slots:
        """Return the newcomer's part of every sum."""
        each = [terms(W) for W in matrices(u.delta, w)]
        return {name: stacked([one[name] for one in each], w) for name in each[0]} if each else {}


@dataclass(frozen=True)
class Ace(MergesMatrices):
    """Weights each checkpoint by W~^T W~ (W~ the task vector less the mean of its rows), its estimated input covariance.

    Where gamma, how unlike the checkpoints' norms are, is above `threshold`, the covariances are brought to trace 1, and the leading
    `fraction` of the singular directions is added once more with its mean singular value. `epsilon` is the ridge.
    Directions under 1e-5 of the largest are not added (published: they are, and are arbitrary). A checkpoint that does not change
    a matrix has no say in it.
    """

    source: ClassVar[str] = "arXiv 2603.02945; unravel-xu/ACE-Merging src/merge/strategy.py"

    epsilon: float = 0.01
    threshold: float = 0.3
    fraction: float = 0.3
    others: Others = "mean"

    def __post_init__(self) -> None:
        check_between("epsilon", self.epsilon, 1e-12, 1e6)
        check_between("threshold", self.threshold, 0, 1e6)
        check_between("fraction", self.fraction, 0, 1)
        check_one_of("others", self.others, get_args(Others))

    def of_matrix(self, w: Weight) -> tuple[Statistic, ...]:
        """Return the covariances."""
        return (Covariances(),)

    def matrix(self, kept: Mapping[Statistic, Slots], counts: Counts) -> Tensor:
        """Return the merged matrix."""
        sums = kept[Covariances()]
        if sums["T"] <= 0:
            return sums["W"]
        unlike = heterogeneity(sums) > self.threshold
        W_0, total = weighted(sums, self.epsilon, unlike)
        if not unlike:
            return W_0
        rest = sums["pull_per_trace"] + sums["means"] - sums["W"] @ total / sums["T"]  # sum W_t (Sigma_t - mean Sigma)
        return W_0 + refinement(rest + W_0, self.fraction)
