"""The Karcher mean: the middle of the checkpoints' weights on the sphere.

Source: mergekit, `merge_methods/karcher.py`. Each weight theta_i is a direction and a norm. Everything that the mean
needs are the angles between the directions, so it is found among T coefficients: mean = sum_i c_i theta_i / norm(theta_i).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ...state.records import Weight
from ._batch import CHUNK, MOST, total
from .batch_interface import MergesAtOnce
from .interface import check_between


def gram(theta0: Tensor, taus: Sequence[Tensor]) -> Tensor:
    """Return the inner products (T, T), float64, of theta_i = theta0 + tau_i."""
    G = torch.zeros((len(taus), len(taus)), dtype=torch.float64, device=theta0.device)
    for base, *news in zip(*(torch.split(t.reshape(-1), CHUNK) for t in (theta0, *taus)), strict=True):
        thetas = base.double() + torch.stack(news)  # (T, chunk)
        G.addmm_(thetas, thetas.T)
    return G


def centre(C: Tensor, a: Tensor, max_iter: int, tol: float) -> Tensor:
    """Return the coefficients c (T,) of the Karcher mean sum_i c_i u_i of unit vectors u_i of weights a (T,).

    C: (T, T) the cosines of the u_i. Each step goes along t = sum_i a_i log_u(u_i) until that is shorter than tol.
    """
    length = _length(a, C)
    c = torch.eye(len(a), 1).to(a)[:, 0] if length < tol else a / length
    for _ in range(max_iter):
        cosine = (C @ c).clamp(-1, 1)
        angle = cosine.arccos()
        f = torch.where(angle < tol, 0.0, a * angle / angle.sin())
        t = f - (f @ cosine) * c
        step = _length(t, C)
        if step < tol:
            break
        c = torch.cos(step) * c + torch.sin(step) * t / step
        c = c / _length(c, C).clamp(min=tol)
    return c


def _length(c: Tensor, C: Tensor) -> Tensor:
    return (c @ C @ c).clamp(min=0).sqrt()


def karcher(G: Tensor, shares: Tensor, max_iter: int, tol: float) -> Tensor:
    """Return the coefficients (T,) of the merged weight: sum_i coefficient_i theta_i; G (T, T) inner products."""
    norms = G.diagonal().clamp(min=0).sqrt()
    valid = norms > tol  # a weight of no length has no direction
    if not valid.any():
        return torch.zeros_like(norms)
    units = norms[valid]
    a = shares[valid] / shares[valid].sum()
    c = centre(G[valid][:, valid] / torch.outer(units, units), a, max_iter, tol)
    coefficients = torch.zeros_like(norms)
    coefficients[valid] = (shares @ norms) / shares.sum() * c / units
    return coefficients


@dataclass(frozen=True)
class Karcher(MergesAtOnce):
    """The Karcher mean of each weight, whatever its kind; a share is the weight of a point.

    Angles come from inner products in float64: mergekit's, in float32, cannot tell those of near checkpoints from zero.
    """

    source: ClassVar[str] = "mergekit, karcher"
    needs_base: ClassVar[bool] = True

    max_iter: int = 10
    tol: float = 1e-5

    def __post_init__(self) -> None:
        check_between("max_iter", self.max_iter, 0, MOST)
        check_between("tol", self.tol, 1e-12, 1)

    def merge(self, taus: Sequence[Tensor], w: Weight, shares: Sequence[float], theta0: Tensor) -> Tensor:
        """Return the merged task vector of one weight: the mean of theta0 + tau_i, less theta0."""
        if len(taus) == 1:
            return taus[0].clone()
        G = gram(theta0, taus)
        coefficients = karcher(G, torch.tensor(shares).to(G), self.max_iter, self.tol)
        merged = total([theta0, *taus], [float(coefficients.sum()) - 1, *coefficients.tolist()])
        return merged.to(taus[0].dtype)
