"""PCB-Merging: each entry's coefficient balances its weight within its task against the other tasks' agreement.

Source: arXiv 2410.02396, section 3, in the form of the authors' code (duguodong7/pcb-merging, `pcb-merging.py`). The
paper writes two softmaxes and a hard mask where the code has an exponential, a hyperbolic tangent and a rescaling.
The authors flatten a whole checkpoint; here every weight is taken by itself, and keeps its own share `pcb_ratio`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ...state.records import Totals, Weight
from ._batch import check_finite, total
from .batch_interface import MergesAtOnce
from .interface import check_between

CLAMPED = 0.0001  # the share of a task vector's largest and least entries that are clamped to the next ones


def order_statistic(x: Tensor, index: int) -> Tensor:
    """Return the entry of x (D,) that would stand at `index` if x were sorted."""
    return x.kthvalue(index + 1).values


def clamp(x: Tensor, below: float, above: float) -> Tensor:
    """Return x (D,) held between its order statistics at the shares `below` and 1 - `above`."""
    D = x.numel()
    return x.clamp(order_statistic(x, int(D * below)), order_statistic(x, int(D * (1 - above) - 1)))


def rescale(x: Tensor, low: Tensor) -> Tensor:
    """Return x (D,) with `low` and less at 0 and its largest entry at 1; in float64, in x's place if that is its dtype.

    Where those two are equal (in a weight with one entry, say), its largest entries are at 1 if they are positive.
    """
    high = x.amax()
    x, low, high = x.double(), low.double(), high.double()
    if high > low:
        return x.sub_(low).div_(high - low).clamp_(min=0)
    return ((x >= high) & (x > 0)).double()


def balancing(tau: Tensor, magnitude: Tensor, S: Tensor, N: float) -> Tensor:
    """Return intra-balancing x inter-balancing (D,): exp(N norm(|tau|)^2) x tanh(tau * S), up to a constant factor.

    tau (D,): a task vector; magnitude (D,): |tau|, clamped; S (D,): the sum of all N task vectors. The exponential is
    divided by exp(N), which rescaling takes out again: with many tasks it would be infinite.
    """
    intra = rescale(magnitude.clone(), magnitude.amin()).square_().sub_(1).mul_(N).exp_()
    return intra.mul_(S.mul(tau).tanh_())


def pcb(taus: Sequence[Tensor], shares: Sequence[float], pcb_ratio: float) -> Tensor:
    """Return the merged task vector (D,), float64: sum scale_i sign(tau_i) |tau_i| / sum scale_i; taus (D,) each."""
    S, N, D = total(taus, shares), sum(shares), taus[0].numel()
    weighted, scales = torch.zeros_like(S), torch.zeros_like(S)
    for tau, share in zip(taus, shares, strict=True):
        magnitude = clamp(tau.abs(), CLAMPED, CLAMPED)
        b = balancing(tau, magnitude, S, N)
        scale = rescale(b, order_statistic(b, min(int(D * (1 - pcb_ratio)), D - 1)))
        weighted.addcmul_(scale, magnitude.mul_(tau.sign()), value=share)
        scales.add_(scale, alpha=share)
    return weighted.div_(scales.clamp_(min=1e-12))


@dataclass(frozen=True)
class Pcb(MergesAtOnce):
    """PCB-Merging, weight by weight.

    A share counts as that many checkpoints everywhere: in N, in the sum, and in the weighted mean. One checkpoint
    alone keeps its share `pcb_ratio` of entries, as the method has it.
    """

    source: ClassVar[str] = "arXiv 2410.02396"

    pcb_ratio: float = 0.1  # the share of each task vector's entries that count; the default of the authors' function
    lambda_: float = 1.0  # written lambda in a configuration; 1 is where the authors' search starts

    def __post_init__(self) -> None:
        check_between("pcb_ratio", self.pcb_ratio, 0, 1)
        check_finite("lambda", self.lambda_)

    def merge(self, taus: Sequence[Tensor], w: Weight, shares: Sequence[float], theta0: Tensor) -> Tensor:
        """Return the merged task vector of one weight, whatever its kind."""
        if not w.size:
            return taus[0].clone()
        return pcb([tau.reshape(-1) for tau in taus], shares, self.pcb_ratio).to(taus[0].dtype).reshape(w.shape)

    def scale(self, totals: Totals) -> float:
        """Return lambda."""
        return self.lambda_
