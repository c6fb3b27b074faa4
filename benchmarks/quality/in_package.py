"""Runs fusion-bench's OPCM in its own environment: python in_package.py TREE MERGED BASE CHECKPOINT... (model folders).

TREE is a JSON file with the name of each of the encoder's modules and whether it is a linear map, which is all that the
package looks at: nothing is computed with the models. The merged weights are saved after each step.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from fusion_bench import BaseModelPool
from fusion_bench.method.opcm.opcm_general import OPCM
from safetensors.torch import load_file, save_file
from torch import nn


class Saving(OPCM):  # type: ignore[misc]
    """OPCM, but that each merged model's weights are saved to a folder."""

    merged: Path

    def save_merged_model(self, merged_model: Any, step: int) -> None:
        """Save the weights as they are."""
        weights = {name: w.detach().clone().contiguous() for name, w in merged_model.state_dict().items()}
        save_file(weights, self.merged / f"{step}.safetensors")


def module(tree: dict[str, bool], folder: str) -> nn.Module:
    """Return modules of these names with the weights of a model folder."""
    weights = load_file(Path(folder) / "model.safetensors")
    made: dict[str, nn.Module] = {"": nn.Module()}
    for name, linear in tree.items():
        parent, _, own = name.rpartition(".")
        if name:
            made[name] = _linear(weights, name) if linear else nn.Module()
            made[parent].add_module(own, made[name])
    for name, weight in weights.items():
        parent, _, own = name.rpartition(".")
        made[parent].register_parameter(own, nn.Parameter(weight))
    return made[""]


def _linear(weights: dict[str, torch.Tensor], name: str) -> nn.Module:
    rows, columns = weights[f"{name}.weight"].shape
    return nn.Linear(columns, rows, bias=f"{name}.bias" in weights)


def main() -> None:
    """Merge the checkpoints in their order."""
    told, merged, *folders = sys.argv[1:]
    tree = json.loads(Path(told).read_text())
    torch.set_num_threads(1)
    names = ["_pretrained_", *(f"checkpoint_{i}" for i in range(len(folders) - 1))]
    algorithm = Saving(alpha=0.5, shuffle_order=False)
    algorithm.merged = Path(merged)
    algorithm.run(BaseModelPool({name: module(tree, folder) for name, folder in zip(names, folders, strict=True)}))


if __name__ == "__main__":
    main()
