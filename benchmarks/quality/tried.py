"""Formulas that were tried beside `gram` and left, on the tuning seeds: python -m quality.tried --sets vision-8 --draw 1-1.

All read the same statistics, matrix by matrix, in float64, and scale what they make of matrices alone; what is no matrix is
averaged. Nothing here runs through mergd, whose `gram` keeps one side of a matrix that is longer than four times its width.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor

from .__main__ import ROOT
from .kinds import Weights
from .recipe import Draw
from .sets import kind_of, set_of
from .training import BASE, LORA, Trained


@dataclass(frozen=True)
class Sums:
    """What is known of one matrix: sums over the checkpoints, of products of each task vector (m, n) with itself."""

    T: int
    S: Tensor  # sum tau, (m, n)
    B: Tensor  # sum tau tau^T tau / ||tau||^2, (m, n)
    G_in: Tensor  # sum tau^T tau / ||tau||^2, (n, n)
    G_out: Tensor  # sum tau tau^T / ||tau||^2, (m, m)
    K_in: Tensor  # sum (tau^T tau)^2 / ||tau||^2, (n, n)
    K_out: Tensor  # the same of the transposed, (m, m)

    @classmethod
    def of(cls, taus: list[Tensor]) -> "Sums":
        """Return the sums of task vectors that are not zero."""
        squares = [tau.square().sum() for tau in taus]
        ins, outs = [tau.T @ tau for tau in taus], [tau @ tau.T for tau in taus]

        def over(products: list[Tensor]) -> Tensor:
            return torch.stack([one / square for one, square in zip(products, squares, strict=True)]).sum(0)

        pulls = [tau @ one for tau, one in zip(taus, ins, strict=True)]
        squared_in, squared_out = [one @ one for one in ins], [one @ one for one in outs]
        total = torch.stack(taus).sum(0)
        return cls(len(taus), total, over(pulls), over(ins), over(outs), over(squared_in), over(squared_out))


Formula = Callable[[Sums], Tensor]


def lifted(G: Tensor, epsilon: float) -> Tensor:
    """Return G + e I, e being epsilon x the mean eigenvalue."""
    return G + epsilon * G.diagonal().mean() * torch.eye(len(G), dtype=G.dtype)


def inverse(G: Tensor) -> Tensor:
    """Return G^-1."""
    found: Tensor = torch.linalg.inv(G)
    return found


def decomposed(X: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return U, S and V^T of X = U S V^T."""
    U, S, Vh = torch.linalg.svd(X, full_matrices=False)
    return U, S, Vh


def eigen(G: Tensor) -> tuple[Tensor, Tensor]:
    """Return the eigenvalues, ascending, and the eigenvectors of a symmetric matrix."""
    values, Q = torch.linalg.eigh((G + G.T) / 2)
    return values, Q


def power(G: Tensor, exponent: float) -> Tensor:
    """Return a symmetric matrix to a power; what rounding made negative is nothing."""
    values, Q = eigen(G)
    powers = torch.where(values > 1e-12 * values[-1], values.clamp(min=1e-300) ** exponent, torch.zeros_like(values))
    return Q * powers @ Q.T


def input_side(s: Sums, epsilon: float = 0.1) -> Tensor:
    """WUDI's closed form with a ridge."""
    return s.B @ inverse(lifted(s.G_in, epsilon))


def output_side(s: Sums, epsilon: float = 0.1) -> Tensor:
    """The same of the transposed."""
    return inverse(lifted(s.G_out, epsilon)) @ s.B


def both(s: Sums, epsilon: float = 0.1) -> Tensor:
    """The mean of both sides."""
    return (input_side(s, epsilon) + output_side(s, epsilon)) / 2


def together(s: Sums, epsilon: float = 0.1) -> Tensor:
    """The least of both sides' losses at once: G_out M + M G_in = 2 B, by the eigenvectors of both."""
    a, U = eigen(lifted(s.G_out, epsilon))
    b, V = eigen(lifted(s.G_in, epsilon))
    return U @ (2 * (U.T @ s.B @ V) / (a[:, None] + b[None, :])) @ V.T


def halves(s: Sums) -> Tensor:
    """Half of the whitening on each side, G_out^-1/2 B G_in^-1/2: TSV-M with weights in the stead of a cut."""
    return power(lifted(s.G_out, 0.01), -0.5) @ s.B @ power(lifted(s.G_in, 0.01), -0.5)


def towards_mean(s: Sums, epsilon: float = 0.1) -> Tensor:
    """A ridge towards the mean of the task vectors, not towards nothing."""
    mean = s.S / s.T
    sides = [epsilon * G.diagonal().mean() * inverse(lifted(G, epsilon)) for G in (s.G_in, s.G_out)]
    return both(s, epsilon) + (mean @ sides[0] + sides[1] @ mean) / 2


def polar(X: Tensor) -> Tensor:
    """Return the nearest matrix whose singular values are all 1."""
    U, _, Vh = decomposed(X)
    return U @ Vh


def energies(s: Sums) -> Tensor:
    """Both sides, with M^T M and M M^T brought to what the task vectors have there on average: two more sums to keep."""
    M, roots = both(s), []
    for G, K in ((s.G_in, s.K_in), (s.G_out, s.K_out)):
        half = power(lifted(G, 0.1), -0.5)
        roots.append(power(half @ K @ half, 0.5))
    return (polar(M @ roots[0]) @ roots[0] + roots[1] @ polar(roots[1] @ M)) / 2


def as_strong(U: Tensor, S: Tensor, Vh: Tensor, norm: Tensor) -> Tensor:
    """Return U S V^T, brought to a Frobenius norm."""
    found: Tensor = U * (S * (norm / S.norm())) @ Vh
    return found


def flattened(formula: Formula, flatten: float = 0.5, scale: float = 1.0) -> Formula:
    """Return the formula with singular values to the power 1 / T^flatten, at the same norm, times a constant."""

    def flat(s: Sums) -> Tensor:
        U, S, Vh = decomposed(formula(s))
        powers = torch.where(1e-5 * S[0] < S, S ** (s.T**-flatten), torch.zeros_like(S))
        return as_strong(U, powers, Vh, S.norm() * scale)

    return flat


def capped(s: Sums) -> Tensor:
    """Both sides, no singular value above their root mean square, at the same norm."""
    U, S, Vh = decomposed(both(s))
    low = S.clamp(max=float(S.square().mean().sqrt()))
    return as_strong(U, low, Vh, S.norm())


FORMULAS: dict[str, Formula] = {
    "the mean": lambda s: s.S / s.T,
    "input side": input_side,
    "output side": output_side,
    "both sides": both,
    "both sides, epsilon 0.01": lambda s: both(s, 0.01),
    "both sides, epsilon 1": lambda s: both(s, 1.0),
    "both sides, ridge towards the mean": towards_mean,
    "both losses at once": together,
    "half of the whitening on each side": halves,
    "both sides, energies brought back": energies,
    "both sides, singular values capped": capped,
    "flattened, exponent 1 / T^0.35": flattened(both, 0.35),
    "flattened, exponent 1 / T^0.5": flattened(both),
    "flattened, exponent 1 / T^0.7": flattened(both, 0.7),
    "flattened, x 1.15": flattened(both, scale=1.15),
    "flattened, x 1.3": flattened(both, scale=1.3),
    "input side, flattened, x 1.15": flattened(input_side, scale=1.15),
    "halves, flattened, x 1.15": flattened(halves, scale=1.15),
    "both losses, flattened, x 1.15": flattened(together, scale=1.15),
}


def main() -> None:
    """Print the average accuracy of each formula on a draw of each set."""
    asked = argparse.ArgumentParser(prog="python -m quality.tried", description=__doc__)
    asked.add_argument("--sets", nargs="+", default=["vision-8", "vision-20"])
    asked.add_argument(
        "--draw", default="1-1", help="TRAINING-ORDER; train it first: python -m quality train --draws 1-1"
    )
    asked.add_argument("--most", type=int, help="test items of each task; default: all")
    asked.add_argument("--where", type=Path, default=ROOT / ".quality")
    options = asked.parse_args()
    torch.set_num_threads(1)
    columns = [
        column(name, Draw(*map(int, options.draw.split("-"))), options.most, options.where) for name in options.sets
    ]
    print("| formula |", " | ".join(options.sets), "|")
    for name in FORMULAS:
        print(f"| {name} |", " | ".join(f"{one[name]:.1f}" for one in columns), "|")


def column(name: str, draw: Draw, most: int | None, where: Path) -> dict[str, float]:
    """Return the average accuracy of each formula on one draw of a set."""
    one = set_of(name)
    kind, trained = kind_of(one.kind), Trained(where.resolve(), one.kind, draw.training)
    base = trained.weights(BASE)
    tuned = [trained.weights(task + LORA * one.adapters) for task in one.tasks]
    sums = {w: Sums.of([(t[w] - base[w]).double() for t in tuned]) for w in base if base[w].ndim == 2}
    found = {}
    for formula, read in FORMULAS.items():
        merged: Weights = {w: torch.stack([t[w] for t in tuned]).mean(0) for w in base}
        merged |= {w: (base[w].double() + read(s)).float() for w, s in sums.items()}
        found[formula] = fmean(kind.accuracy(base, merged, task, draw.training, most) for task in one.tasks)
    return found


if __name__ == "__main__":
    main()
