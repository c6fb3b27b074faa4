"""Routes to OPCM's protected directions: what each costs in CPU time, and what it changes in the published task vector.

For accumulators of full rank, after a few folds of noise and one common direction: ratios to the route that mergd takes, one line
for each size. The error is that of A + cleaned against the same by a float64 singular value decomposition.
"""

import argparse
import json
import time
from collections.abc import Callable

import torch
from torch import Tensor

from mergd.daemon.factoring import eigenvectors
from mergd.plugins.rules._directions import all_directions, gram_matrix, leading_directions, split_rank
from mergd.plugins.rules.opcm import project

ALPHA = 0.5
Directions = tuple[Tensor, Tensor]  # U (m, r), V (n, r)


def taken(A: Tensor) -> Directions:
    """By the float64 Gram matrix of the short side, as mergd does."""
    found = leading_directions(A, ALPHA)
    return found.U, found.V


def by_svd(A: Tensor, dtype: torch.dtype) -> Directions:
    """By the whole singular value decomposition."""
    U, S, Vh = torch.linalg.svd(A.to(dtype), full_matrices=False)
    r = split_rank(S, ALPHA)
    return U[:, :r], Vh[:r].T


def by_float32(A: Tensor) -> Directions:
    """By a float32 Gram matrix."""
    squares, Q = torch.linalg.eigh(A.T @ A)
    S = squares.flip(0).clamp(min=0).sqrt()
    V = Q.flip(1)[:, : split_rank(S, ALPHA)]
    return A @ V / S[: V.shape[1]], V


def by_iteration(A: Tensor) -> Directions:
    """By block Krylov iteration for the leading ones, once the eigenvalues of the float64 Gram matrix say how many."""
    gram = gram_matrix(A)
    S = torch.linalg.eigvalsh(gram).flip(0).clamp(min=0).sqrt()
    V = eigenvectors(gram, split_rank(S, ALPHA)).float()
    return A @ V / S[: V.shape[1]].float(), V


ROUTES: dict[str, Callable[[Tensor], Directions]] = {
    "float64 Gram matrix": taken,
    "float64 SVD": lambda A: by_svd(A, torch.float64),
    "float32 SVD": lambda A: by_svd(A, torch.float32),
    "float32 Gram matrix": by_float32,
    "Krylov iteration": by_iteration,
}


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 768, 1536], help="sides of square matrices")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--flat", action="store_true", help="an accumulator whose singular values nearly coincide")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for n in arguments.sizes:
        print(json.dumps({"side": n} | measured(n, arguments.rounds, arguments.flat)))


def measured(n: int, rounds: int, flat: bool) -> dict[str, object]:
    """Return for each route its least CPU time as a ratio to the first one's, and its error."""
    generator = torch.Generator().manual_seed(n)
    common = torch.randn(n, 1, generator=generator) @ torch.randn(1, n, generator=generator)
    A = sum((torch.randn(n, n, generator=generator) for _ in range(4)), torch.zeros(n, n)) + 0.2 * common
    if flat:
        U, _, Vh = torch.linalg.svd(A)
        A = (U * (1 + 0.001 * torch.randn(n, generator=generator))) @ Vh
    D = torch.randn(n, n, generator=generator) + 0.05 * common
    exact = all_directions(A, ALPHA)
    truth = A.double() + project(D.double(), exact.U[:, : exact.r], exact.V[:, : exact.r])
    seconds: dict[str, list[float]] = {name: [] for name in ROUTES}
    found: dict[str, Directions] = {}
    for _ in range(rounds):  # by turns
        for name, route in ROUTES.items():
            began = time.process_time()
            found[name] = route(A)
            seconds[name].append(time.process_time() - began)
    least = {name: min(each) for name, each in seconds.items()}
    errors = {name: error(A, D, truth, *directions) for name, directions in found.items()}
    first = next(iter(least.values()))
    ratios = {name: {"cpu": round(least[name] / first, 2), "error": f"{errors[name]:.0e}"} for name in ROUTES}
    return {"split_rank": exact.r, "cpu_seconds": round(first, 3), **ratios}


def error(A: Tensor, D: Tensor, truth: Tensor, U: Tensor, V: Tensor) -> float:
    """Return the relative error of A + cleaned."""
    ours = A + project(D, U.float(), V.float())
    return float((ours - truth).norm() / truth.norm())


if __name__ == "__main__":
    main()
