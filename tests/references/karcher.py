"""The Karcher mean of checkpoints in batch, transcribed in float64.

Source: mergekit, `merge_methods/karcher.py` (max_iter 10, tol 1e-5): the Riemannian centre of mass on the sphere. Each
weight theta_i of a checkpoint (not its task vector) is one point: its direction theta_i / norm(theta_i), of weight
a_i = 1 / T. From the normalised mean u of the directions, repeat: t = sum_i a_i log_u(direction_i), u = exp_u(t), until
norm(t) < tol. merged = (sum_i a_i norm(theta_i)) u; published here as merged - theta_0. Directions of weights with norm
<= tol are left out (their zero norm still counts in the mean norm), as are those nearer to u than tol.
mergekit takes angles from float32 inner products, which cannot tell those under some 3e-4 from zero; this is float64.
"""

import torch
from references.interface import Checkpoints
from references.repeating import repeated
from torch import Tensor


def centre(points: Tensor, max_iter: int, tol: float) -> Tensor:
    """Return the unit vector (D,) in the middle of the unit vectors `points` (T, D)."""
    u = points.mean(0)
    u = points[0] if u.norm() < tol else u / u.norm()
    for _ in range(max_iter):
        t = torch.zeros_like(u)
        for point in points:
            cosine = (u @ point).clamp(-1, 1)
            angle = cosine.arccos()
            if angle >= tol:
                t += angle / angle.sin() * (point - cosine * u) / len(points)
        if t.norm() < tol:
            break
        u = t.norm().cos() * u + t.norm().sin() * t / t.norm()
        u = u / u.norm()
    return u


def karcher(thetas: Tensor, max_iter: int, tol: float) -> Tensor:
    """Return the mean (D,) of thetas (T, D)."""
    norms = thetas.norm(dim=1)
    valid = norms > tol
    if len(thetas) == 1 or not valid.any():
        return thetas[0] if len(thetas) == 1 else torch.zeros_like(thetas[0])
    mean: Tensor = norms.mean() * centre(thetas[valid] / norms[valid, None], max_iter, tol)
    return mean


def merge(given: Checkpoints, max_iter: int = 10, tol: float = 1e-5) -> dict[str, Tensor]:
    merged = {}
    for name in given.kinds:
        base = given.base[name].double()
        thetas = torch.stack([(base + tau).flatten() for tau in repeated(given, name)])
        merged[name] = karcher(thetas, max_iter, tol).reshape(base.shape) - base
    return merged
