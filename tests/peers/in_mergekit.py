"""Runs mergekit's methods, in an environment of its own: reads a plan, writes one merged model for each entry."""

import json
import sys
import traceback
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import yaml
from mergekit import sparsify as masks
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.merge_methods import generalized_task_arithmetic as gta
from mergekit.options import MergeOptions
from safetensors.torch import load_file

MERGE_GROUP = gta.GeneralizedTaskArithmeticMerge.merge_group
NEEDS_NO_BASE = ("linear", "karcher")


def main(work: Path) -> None:
    """Run all that is planned."""
    plan = json.loads((work / "plan.json").read_text())
    for entry in plan["mergekit"]:
        for model in entry["models"]:
            target = work / model / "mergekit" / entry["id"]
            try:
                merge(work / model, target, entry)
            except Exception:  # noqa: BLE001 - the package's, whatever it is
                target.mkdir(parents=True, exist_ok=True)
                (target / "error.txt").write_text(traceback.format_exc())
    (work / "mergekit.version").write_text(version("mergekit"))


def merge(folder: Path, target: Path, entry: dict[str, Any]) -> None:
    """Merge by the package's own configuration, in float64."""
    checkpoints = [folder / f"checkpoint-{i}" for i in range(entry["checkpoints"])]
    config = {
        "merge_method": entry["method"],
        "models": [{"model": str(checkpoint)} for checkpoint in checkpoints],
        "parameters": entry["options"],
        "dtype": "float64",
    }
    if entry["method"] not in NEEDS_NO_BASE:
        config["base_model"] = str(folder / "base")
    given = MergeConfiguration.model_validate(yaml.safe_load(yaml.safe_dump(config)))
    with_drawn_numbers(checkpoints, entry["divided"])
    run_merge(given, str(target), MergeOptions(copy_tokenizer=False, write_model_card=False, quiet=True))


def with_drawn_numbers(checkpoints: list[Path], divided: bool) -> None:
    """Let the masks be drawn with the numbers that lie beside each checkpoint, in place of torch's generator.

    `divided`: what is kept is divided by its probability, as the papers have it.
    """
    numbers = {str(path): load_file(path.with_name(f"{path.name}.drawn.safetensors")) for path in checkpoints}
    turn: Iterator[torch.Tensor] = iter(())

    def merge_group(self: Any, group: Any, /, **parameters: Any) -> torch.Tensor:
        nonlocal turn
        turn = iter([numbers[str(entry.id.model.path)][group.metadata.name] for entry in group.non_base])
        merged: torch.Tensor = MERGE_GROUP(self, group, **parameters)
        return merged

    def bernoulli(probabilities: torch.Tensor) -> torch.Tensor:
        kept = (next(turn).reshape(probabilities.shape) < probabilities).to(probabilities.dtype)
        return kept / probabilities if divided else kept

    gta.GeneralizedTaskArithmeticMerge.merge_group = merge_group
    masks.torch.bernoulli = bernoulli


if __name__ == "__main__":
    main(Path(sys.argv[1]))
