"""Measures how well sketches tell near-copies: pairs of task vectors with a known cosine, and what is estimated of it."""

import argparse
import math
import statistics
from collections.abc import Callable

import torch
from torch import Tensor

from mergd.daemon.sketch import Projection, Sketch, cosines
from mergd.plugins.gates.sane import Sane

Vector = dict[str, Tensor]
COSINES = (0.0, 0.9, 0.97, 0.985, 0.995)


def full() -> Vector:
    """Twenty matrices of full rank."""
    return {f"{k}.weight": torch.randn(48, 48) for k in range(20)}


def low_rank() -> Vector:
    """Twenty matrices of rank two, as small adapters leave them."""
    return {f"{k}.weight": torch.randn(48, 2) @ torch.randn(2, 48) for k in range(20)}


def rank_one() -> Vector:
    """One matrix of rank one: the worst there is."""
    return {"0.weight": torch.outer(torch.randn(48), torch.randn(48))}


KINDS: dict[str, Callable[[], Vector]] = {"20 full matrices": full, "20 of rank 2": low_rank, "1 of rank 1": rank_one}


def pair(kind: Callable[[], Vector], cosine: float) -> tuple[Vector, Vector]:
    """Return two task vectors of the same norm with this cosine."""
    x, noise = kind(), kind()
    apart = sum(float((x[w] * noise[w]).sum()) for w in x) / _square(x)
    across = {w: noise[w] - apart * x[w] for w in x}
    factor = math.sqrt((1 - cosine**2) * _square(x) / _square(across))
    return x, {w: cosine * x[w] + factor * across[w] for w in x}


def _square(x: Vector) -> float:
    return sum(float((tensor**2).sum()) for tensor in x.values())


def sketch(x: Vector, signs: int) -> bytes:
    """Return the sketch with signs of its own."""
    made = Sketch()
    for name, tensor in x.items():
        made.add(Projection(f"{signs}.{name}", tuple(tensor.shape)), tensor)
    return made.tobytes()


def main() -> None:
    """Print a row for each kind and cosine."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=1000, help="for each row; default: %(default)s")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    torch.set_num_threads(1)
    for name, kind in KINDS.items():
        for cosine in COSINES:
            pairs = (pair(kind, cosine) for _ in range(options.pairs))
            found = [cosines(sketch(x, k), [sketch(y, k)])[0] for k, (x, y) in enumerate(pairs)]
            copies = sum(estimate > Sane().near_copy for estimate in found)
            print(f"| {name} | {cosine:g} | {statistics.pstdev(found):.2g} | {copies} of {len(found)} |", flush=True)


if __name__ == "__main__":
    main()
