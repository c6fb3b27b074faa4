"""How small a direction may be that Iso-C and TSV-M still tell apart: equality with the published form against stability.

    PYTHONPATH=tests python benchmarks/tolerance.py --sides 64 256 768

For each tolerance: the relative difference of the rule, in float32, from the published form without any tolerance; and how much a
change of 1e-7 in the task vectors moves the rule. Of near-copies TSV-M's published form is itself decided by rounding.
"""

import argparse
from collections.abc import Sequence

import torch
from contracts.streaming import Stream, relative_error
from references import iso_c, tsvm
from references.interface import Checkpoints
from torch import Tensor

from mergd.plugins.rules import _spectral
from mergd.plugins.rules.interface import Rule
from mergd.plugins.rules.iso_c import IsoC
from mergd.plugins.rules.tsvm import TsvM
from mergd.state.records import Weight

COUNT = 8  # checkpoints
NO_TOLERANCE = 1e-12


def task_vectors(kind: str, side: int, seed: int) -> list[Tensor]:
    """Return task vectors of one square matrix: Gaussian, of low rank with noise, or two near-copies among others."""
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    def low_rank() -> Tensor:
        return noise(side, 8) @ noise(8, side)

    if kind == "low rank and noise":
        shared = 0.3 * low_rank()
        return [1e-3 * (shared + low_rank() + 0.3 * noise(side, side)) for _ in range(COUNT)]
    taus = [1e-3 * noise(side, side) for _ in range(COUNT)]
    return [taus[0], taus[0] + 1e-9 * noise(side, side), *taus[2:]] if kind == "near-copies" else taus


def read(rule: Rule, taus: Sequence[Tensor]) -> Tensor:
    """Return what a rule publishes of one matrix."""
    stream = Stream(rule, (Weight("w", tuple(taus[0].shape), "matrix"),))
    for tau in taus:
        stream.fold({"w": tau})
    return stream.published()["w"]


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sides", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    print(
        "| task vectors | side | rule | tolerance | from the published form | by a change of 1e-7 |\n|---|---|---|---|---|---|"
    )
    iso_c.TOLERANCE = tsvm.TOLERANCE = NO_TOLERANCE
    for kind in ("Gaussian", "low rank and noise", "near-copies"):
        for side in arguments.sides:
            taus = task_vectors(kind, side, arguments.seed)
            near = [tau * (1 + 1e-7 * torch.randn(tau.shape)) for tau in taus]
            given = Checkpoints([{"w": tau.double()} for tau in taus], {"w": "matrix"})
            for name, rule, batch in (("iso_c", IsoC(), iso_c.merge), ("tsvm", TsvM(), tsvm.merge)):
                published = batch(given)["w"]
                for tolerance in (1e-4, 1e-5, 1e-6):
                    _spectral.RANK_TOLERANCE = tolerance
                    found = read(rule, taus)
                    moved, away = relative_error(read(rule, near), found), relative_error(found, published)
                    print(f"| {kind} | {side} | `{name}` | {tolerance:g} | {away:.0e} | {moved:.0e} |", flush=True)


if __name__ == "__main__":
    main()
