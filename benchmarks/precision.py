"""How far float32 slots, and float64 slots, take the matrix rules from their batch references.

Each rule folds the same float32 task vectors of one matrix, with its slots rounded to one dtype after every fold, and is
read; the figure is the norm of the difference to tests/references over the norm of the reference, the worst of all numbers
of checkpoints. Run with `PYTHONPATH=tests python benchmarks/precision.py`.
"""

import argparse
from collections.abc import Iterator, Sequence
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

import torch
from contracts.streaming import empty_slots, relative_error
from references.interface import Checkpoints
from torch import Tensor

from mergd.plugins.rules.interface import Rule, Update
from mergd.state.records import Counts, Totals, Weight

SHAPES = {"square": (128, 128), "tall": (256, 64), "wide": (64, 256)}
TIMES = (1, 2, 8, 50, 150)  # 150 is more than any short side
MOST_STEPPED = 8  # WUDI's reference takes each of its 300 steps over all checkpoints
RULES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("gram", {}),
    ("wudi", {"solver": "ridge"}),
    ("wudi", {}),
    ("wudi", {"step": "relative", "lr": 0.02}),
    ("ace", {}),
    ("ace", {"threshold": 0.0}),
    ("iso_c", {}),
    ("tsvm", {}),
    ("null_filter", {"rank": 32}),
    ("opcm", {}),
)


def gaussian(*shape: int, seed: int) -> Tensor:
    """Return standard normal numbers, float64."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def task_vector(kind: str, m: int, n: int, t: int) -> Tensor:
    """Return one checkpoint's task vector: of full rank, of rank 4, or with singular values that fall to 1e-6."""
    if kind == "low rank":
        D = gaussian(m, 4, seed=3 * t) @ gaussian(4, n, seed=3 * t + 1)
    elif kind == "badly conditioned":
        k = min(m, n)
        U, V = torch.linalg.qr(gaussian(m, k, seed=0))[0], torch.linalg.qr(gaussian(n, k, seed=1))[0]
        own = torch.linspace(0, -6, k, dtype=torch.float64)
        D = (U * 10**own) @ V.T + 0.1 * gaussian(m, 3, seed=3 * t) @ gaussian(3, n, seed=3 * t + 1) / (m * n) ** 0.5
    else:
        D = gaussian(m, n, seed=3 * t)
    return (1e-3 * (1 + t % 3) * D / D.square().mean().sqrt()).float()


def streamed(rule: Rule, w: Weight, taus: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """Return what is read out after folding, with the slots kept in one dtype."""
    kept = {s: {name: one.to(dtype) for name, one in empty_slots(s, w).items()} for s in rule.keeps(w)}
    for t, tau in enumerate(taus):
        before = {s: {name: one.double() for name, one in slots.items()} for s, slots in kept.items()}
        after = {s: s.fold(slots, Update(tau.double()), w, Counts(t, t), {}).slots for s, slots in before.items()}
        kept = {s: {name: one.to(dtype) for name, one in slots.items()} for s, slots in after.items()}
    wide = {s: {name: one.double() for name, one in slots.items()} for s, slots in kept.items()}
    return rule.scale(Totals(folded=len(taus))) * rule.merged(wide, w, Counts(len(taus), len(taus)))


def errors(name: str, parameters: dict[str, Any], kind: str, times: Sequence[int]) -> Iterator[tuple[float, float]]:
    """Yield the relative difference with float32 and with float64 slots, of each shape and number of checkpoints."""
    (entry,) = entry_points(group="mergd.rules", name=name)
    rule, reference = entry.load()(**parameters), import_module(f"references.{name}")
    for m, n in SHAPES.values():
        w = Weight("w", (m, n), "matrix")
        for T in times:
            if T > MOST_STEPPED and name == "wudi" and parameters.get("solver") != "ridge":
                continue
            taus = [task_vector(kind, m, n, t) for t in range(T)]
            given = Checkpoints([{"w": tau.double()} for tau in taus], {"w": "matrix"})
            expected = reference.merge(given, **parameters)["w"]
            found = [streamed(rule, w, taus, dtype) for dtype in (torch.float32, torch.float64)]
            if name == "opcm":  # its scale is not the matrix's own
                found = [one / one.norm() * expected.norm() for one in found]
            yield relative_error(found[0], expected), relative_error(found[1], expected)


def main() -> None:
    """Print one row per rule, with the worst difference of each kind of task vector."""
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--times", type=int, nargs="+", default=TIMES, help="numbers of checkpoints")
    asked.add_argument("--rules", nargs="+", help="only these")
    arguments = asked.parse_args()
    kinds = ("full rank", "low rank", "badly conditioned")
    print("| rule |", " | ".join(f"{kind}, float32 | float64" for kind in kinds), "|")
    for name, parameters in RULES:
        if arguments.rules and name not in arguments.rules:
            continue
        cells = []
        for kind in kinds:
            found = list(errors(name, parameters, kind, arguments.times))
            cells += [f"{max(one[i] for one in found):.0e}" for i in (0, 1)]
        print(f"| `{name}` {parameters or ''} |", " | ".join(cells), "|", flush=True)


if __name__ == "__main__":
    main()
