"""How stable OPCM's variants are over many folds, and how orthogonal what they add is to what is there.

Each variant folds the same task vectors of one matrix with its slots rounded to float32 and with slots in float64, and
once more with task vectors that differ by 1e-7 of themselves: the relative differences of the accumulators at the end, as the
median and the worst of all shapes and streams, and in how many streams a split rank differed on the way. Beside them the
largest cosine between an accumulator and what was added to it (float32 slots). Run with
`PYTHONPATH=tests python benchmarks/orthogonality.py --folds 60 --streams 5`.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median
from typing import get_args

import torch
from contracts.streaming import relative_error
from torch import Tensor

from mergd.plugins.rules.interface import Update
from mergd.plugins.rules.opcm import Accumulator, Variant
from mergd.state.records import Counts, Weight

SHAPES = ((128, 128), (256, 64), (64, 256))
NOISE = 1e-7
RANK = 4  # of the low-rank task vectors
KINDS = ("independent", "with a shared part", "rank 4")


def task_vector(m: int, n: int, seed: int, kind: str, noise: float) -> Tensor:
    """Return one task vector, float32: of its own, with as large a part that all of the stream share, or of rank 4."""
    generator = torch.Generator().manual_seed(seed)
    D = torch.randn(m, RANK if kind == "rank 4" else n, generator=generator)
    if kind == "rank 4":
        D = D @ torch.randn(RANK, n, generator=generator)
    if kind == "with a shared part":
        D = D + torch.randn(m, n, generator=torch.Generator().manual_seed(10**6))
    return 1e-3 * D * (1 + noise * torch.randn(m, n, generator=generator))


@dataclass(frozen=True)
class Run:
    """What came of one stream."""

    accumulator: Tensor
    ranks: list[float]  # the split rank at each fold
    cosine: float  # the largest, between an accumulator and what was added to it


def run(variant: Variant, alpha: float, taus: list[Tensor], dtype: torch.dtype) -> Run:
    """Fold a stream, with the slot kept in one dtype."""
    statistic, w = Accumulator(alpha, variant), Weight("w", tuple(taus[0].shape), "matrix")
    A = torch.zeros(w.shape, dtype=dtype)
    ranks, cosines = [], []
    for t, tau in enumerate(taus):
        folded = statistic.fold({"accumulator": A}, Update(tau.to(dtype)), w, Counts(t, t), {})
        before, after = A.double(), folded.slots["accumulator"].double()
        cosines.append(float((before * (after - before)).sum() / (before.norm() * (after - before).norm() or 1.0)))
        ranks.append(folded.split_rank)
        A = after.to(dtype)
    return Run(A, ranks, max(map(abs, cosines[1:]), default=0.0))


def compared(variant: Variant, alpha: float, folds: int, kind: str, seed: int) -> Iterator[tuple[float, ...]]:
    """Yield, for each shape: the differences by rounding and by noise, whether a split rank differed, the cosine."""
    for m, n in SHAPES:
        taus, near = (
            [task_vector(m, n, seed * 10**4 + t, kind, noise) for t in range(folds)] for noise in (0.0, NOISE)
        )
        narrow, wide = (run(variant, alpha, taus, dtype) for dtype in (torch.float32, torch.float64))
        moved = run(variant, alpha, near, torch.float64)
        by_rounding, by_noise = (relative_error(other.accumulator, wide.accumulator) for other in (narrow, moved))
        yield by_rounding, by_noise, float(narrow.ranks != wide.ranks), narrow.cosine


def main() -> None:
    """Print one row per variant."""
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--folds", type=int, default=60)
    asked.add_argument("--streams", type=int, default=5, help="of each shape")
    asked.add_argument("--alpha", type=float, default=0.5)
    arguments = asked.parse_args()
    print("| variant | task vectors | float32, median | worst | noise, median | worst | other splits | cosine |")
    for variant in get_args(Variant):
        for kind in KINDS:
            streams = range(arguments.streams)
            found = [r for seed in streams for r in compared(variant, arguments.alpha, arguments.folds, kind, seed)]
            by_rounding, by_noise, splits, cosines = zip(*found, strict=True)
            figures = (median(by_rounding), max(by_rounding), median(by_noise), max(by_noise))
            shown = " | ".join(f"{one:.0e}" for one in figures)
            print(f"| `{variant}` | {kind} | {shown} | {sum(splits):.0f} of {len(found)} | {max(cosines):.0e} |")


if __name__ == "__main__":
    main()
