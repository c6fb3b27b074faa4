"""What each version of a stream of LoRA adapters takes on disk, on the real command line.

A decoder in bfloat16 is made, and adapters of its query and value projections are folded one after another. Prints one line
of JSON: megabytes of the second version's published model and slots, counted by file (as if nothing were shared and no
zeros left out), and as the disk grew.
"""

import argparse
import json
import os
from collections.abc import Iterator
from pathlib import Path

import torch
from adapters import RANK, noise, save, save_adapter
from commands import Merge, work_folder

WIDTH, WIDE, TOKENS = 1024, 4096, 32_000
SHAPES = {
    "self_attn.q_proj": (WIDTH, WIDTH),
    "self_attn.k_proj": (WIDTH, WIDTH),
    "self_attn.v_proj": (WIDTH, WIDTH),
    "self_attn.o_proj": (WIDTH, WIDTH),
    "mlp.up_proj": (WIDE, WIDTH),
    "mlp.down_proj": (WIDTH, WIDE),
}
TARGETS = ("q_proj", "v_proj")


def modules(layers: int) -> Iterator[tuple[str, tuple[int, int]]]:
    """Yield the linear maps: name and shape."""
    for layer in range(layers):
        yield from ((f"layers.{layer}.{name}", shape) for name, shape in SHAPES.items())


def make_adapter(folder: Path, layers: int, seed: int) -> Path:
    """Write an adapter of every query and value projection."""
    targets = [name for name, _ in modules(layers) if name.endswith(TARGETS)]
    seeds = range(seed * 10**4, 10**9, 2)
    factors = {
        name: (noise(WIDTH, RANK, s), noise(RANK, WIDTH, s + 1)) for name, s in zip(targets, seeds, strict=False)
    }
    return save_adapter(folder, factors)


def sizes(*folders: Path) -> tuple[int, int]:
    """Return the bytes of all files by name, and what they take on disk."""
    stats = [os.stat(path) for folder in folders for path in folder.iterdir()]
    return sum(s.st_size for s in stats), sum({s.st_ino: s.st_blocks * 512 for s in stats}.values())


def measure(work: Path, layers: int, folds: int) -> dict[str, float]:
    """Fold adapters, and return megabytes of the newest version."""
    model = {f"{name}.weight": noise(*shape, seed).bfloat16() for seed, (name, shape) in enumerate(modules(layers))}
    model |= {
        "embed_tokens.weight": noise(TOKENS, WIDTH, 10**6).bfloat16(),
        "norm.weight": torch.ones(WIDTH).bfloat16(),
    }
    merge = Merge(work / "merge", save(work / "base", model), settings={"keep_last": folds})
    adapters = [make_adapter(work / f"adapter-{seed}", layers, seed) for seed in range(1, folds + 1)]
    for adapter in adapters:
        merge.drop(adapter)
    merge.run_once(of=folds)
    newest = merge.log()[0]
    touched = sum(
        2 * tensor.numel() for name, tensor in model.items() if name.removesuffix(".weight").endswith(TARGETS)
    )
    result = {
        "model_mb": sum(t.numel() * t.element_size() for t in model.values()) / 1e6,
        "touched_mb": touched / 1e6,
        "adapter_mb": sizes(adapters[-1])[0] / 1e6,
        "versions": len(merge.log()),
    }
    for part in ("models", "versions"):
        folders = [merge.state / part / f"{number:06d}" for number in range(1, folds + 1)]
        whole, grown = sizes(folders[-1])[0], sizes(*folders)[1] - sizes(*folders[:-1])[1]
        result |= {f"{part}_mb_by_file": whole / 1e6, f"{part}_mb_on_disk": grown / 1e6}
    result |= {"read_mb": newest["bytes_read"] / 1e6, "written_mb": newest["bytes_written"] / 1e6}
    return result | {"seconds": sum(newest["seconds"].values())}


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--folds", type=int, default=4)
    arguments = parser.parse_args()
    with work_folder() as work:
        result = measure(work, arguments.layers, arguments.folds)
    print(json.dumps({key: round(value, 1) for key, value in result.items()}))


if __name__ == "__main__":
    main()
