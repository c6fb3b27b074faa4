"""What each version of a stream of LoRA adapters takes on disk, on the real command line.

A decoder in bfloat16 is made, and adapters of its query and value projections are folded one after another. Prints one line
of JSON: megabytes of the second version's published model and slots, counted by file (as if nothing were shared and no
zeros left out), and as the disk grew.
"""

import argparse
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from adapters import RANK, make_state, noise, save, save_adapter

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


def make_adapter(folder: Path, layers: int, seed: int) -> None:
    """Write an adapter of every query and value projection."""
    targets = [name for name, _ in modules(layers) if name.endswith(TARGETS)]
    seeds = range(seed * 10**4, 10**9, 2)
    factors = {
        name: (noise(WIDTH, RANK, s), noise(RANK, WIDTH, s + 1)) for name, s in zip(targets, seeds, strict=False)
    }
    save_adapter(folder, factors)


def sizes(*folders: Path) -> tuple[int, int]:
    """Return the bytes of all files by name, and what they take on disk."""
    stats = [os.stat(path) for folder in folders for path in folder.iterdir()]
    return sum(s.st_size for s in stats), sum({s.st_ino: s.st_blocks * 512 for s in stats}.values())


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--folds", type=int, default=4)
    arguments = parser.parse_args()
    model = {
        f"{name}.weight": noise(*shape, seed).bfloat16() for seed, (name, shape) in enumerate(modules(arguments.layers))
    }
    model |= {
        "embed_tokens.weight": noise(TOKENS, WIDTH, 10**6).bfloat16(),
        "norm.weight": torch.ones(WIDTH).bfloat16(),
    }
    with tempfile.TemporaryDirectory(dir=".") as name:
        work = Path(name)
        save(work / "base", model)
        for seed in range(arguments.folds):
            make_adapter(work / "drop" / f"adapter-{seed}", arguments.layers, seed + 1)
        make_state(work)
        log = [json.loads(line) for line in (work / "state" / "log.jsonl").read_text().splitlines()]
        result = {"model_mb": sum(t.numel() * t.element_size() for t in model.values()) / 1e6, "versions": len(log)}
        for part in ("models", "versions"):
            folders = [work / "state" / part / f"{number:06d}" for number in range(1, arguments.folds + 1)]
            whole, grown = sizes(folders[-1])[0], sizes(*folders)[1] - sizes(*folders[:-1])[1]
            result |= {f"{part}_mb_by_file": whole / 1e6, f"{part}_mb_on_disk": grown / 1e6}
        result |= {"written_mb": log[0]["bytes_written"] / 1e6, "seconds": sum(log[0]["seconds"].values())}
    print(json.dumps({key: round(value, 1) for key, value in result.items()}))


if __name__ == "__main__":
    main()
