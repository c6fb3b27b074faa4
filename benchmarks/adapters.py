"""What folding a LoRA adapter costs, beside folding the same update as a full model, on the real command line.

A few adapters are folded into a model of wide matrices; then the state is copied, and the next adapter is folded into one
copy as it is, into the other as the full model that it makes. Prints one line of JSON: seconds by step, and their ratio.
"""

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from commands import Merge, work_folder
from safetensors.torch import save_file

RANK = 16


def measure(work: Path, width: int, matrices: int, before: int) -> dict[str, Any]:
    """Fold an adapter and the full model that it makes, each after the same adapters."""
    names = [f"layers.{i}.proj" for i in range(matrices)]
    base = {name: noise(width, width, seed) for seed, name in enumerate(names)}
    merge = Merge(work / "merge", save(work / "base", {f"{name}.weight": tensor for name, tensor in base.items()}))
    for seed in range(before):
        merge.drop(save_adapter(work / f"adapter-{seed}", factors(names, width, seed)))
    merge.run_once(of=before)
    last = factors(names, width, before)
    shutil.copytree(merge.state, work / "kept", symlinks=True)
    folders = {
        "adapter": save_adapter(work / "next" / "adapter", last),
        "full": save(work / "next" / "full", {f"{n}.weight": base[n] + (B @ A) for n, (B, A) in last.items()}),
    }
    steps = {}
    for kind, folder in folders.items():
        shutil.rmtree(merge.state)
        shutil.copytree(work / "kept", merge.state, symlinks=True)
        cost = merge.mergd("fold", folder)
        steps[kind] = newest(merge) | {"cpu": round(cost.cpu, 2), "peak_rss_mb": round(cost.rss)}
    ratio = {step: round(steps["full"][step] / max(steps["adapter"][step], 1e-3), 1) for step in ("folding", "all")}
    return {"width": width, "rank": RANK, **steps, "ratio": ratio}


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--matrices", type=int, default=2)
    parser.add_argument("--before", type=int, default=3, help="adapters that are folded first")
    arguments = parser.parse_args()
    with work_folder() as work:
        print(json.dumps(measure(work, arguments.width, arguments.matrices, arguments.before)))


def noise(rows: int, columns: int, seed: int) -> torch.Tensor:
    """Return a matrix of standard deviation 0.02."""
    return 0.02 * torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def factors(names: list[str], width: int, seed: int) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Return B and A of one adapter, by module."""
    return {
        name: (noise(width, RANK, 1000 * seed + 2 * i), noise(RANK, width, 1000 * seed + 2 * i + 1))
        for i, name in enumerate(names)
    }


def save(folder: Path, model: dict[str, torch.Tensor]) -> Path:
    """Write a model folder."""
    folder.mkdir(parents=True)
    save_file(model, folder / "model.safetensors", {"format": "pt"})
    return folder


def save_adapter(folder: Path, modules: dict[str, tuple[torch.Tensor, torch.Tensor]]) -> Path:
    """Write an adapter as peft does, of scale 1."""
    folder.mkdir(parents=True)
    tensors = {
        f"base_model.model.{name}.lora_{which}.weight": tensor
        for name, pair in modules.items()
        for which, tensor in zip("BA", pair, strict=True)
    }
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": RANK}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def newest(merge: Merge) -> dict[str, Any]:
    """Return the seconds of the newest version by step, their sum, and the megabytes that it read."""
    entry = merge.log()[0]
    seconds: dict[str, float] = {step: took for step, took in entry["seconds"].items() if step != "wait"}
    folding = sum(seconds.get(step, 0.0) for step in ("read", "decompose", "fold"))
    return seconds | {
        "folding": round(folding, 3),
        "all": round(sum(seconds.values()), 3),
        "mb_read": round(entry["bytes_read"] / 1e6, 1),
    }


if __name__ == "__main__":
    main()
