"""Runs fusion-bench's methods, in an environment of its own: reads a plan, writes one merged model for each entry."""

import json
import sys
import traceback
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import transformers
from fusion_bench import BaseModelPool
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

Weights = dict[str, Tensor]
PREFIX = "vision_model."  # of a CLIP tower's weights, in the transformers that fusion-bench needs


@dataclass(frozen=True)
class Pool:
    """The base model and the checkpoints, as transformers loads them, and the folders of the latter."""

    base: nn.Module
    checkpoints: list[nn.Module]
    folders: list[Path]

    def shipped(self, what: str) -> list[Weights]:
        """Return what lies beside each checkpoint: "drawn" or "fisher"."""
        paths = [folder.with_name(f"{folder.name}.{what}.safetensors") for folder in self.folders]
        return [named(load_file(path), self.base) for path in paths]


def main(work: Path) -> None:
    """Run all that is planned."""
    torch.set_default_dtype(torch.float64)
    plan = json.loads((work / "plan.json").read_text())
    for entry in plan["fusion-bench"]:
        for model in entry["models"]:
            target = work / model / "fusion-bench" / entry["id"]
            target.mkdir(parents=True)
            try:
                save_file(merge(work / model, entry, plan["lookups"][model]), target / "model.safetensors")
            except Exception:  # noqa: BLE001 - the package's, whatever it is
                (target / "error.txt").write_text(traceback.format_exc())
    (work / "fusion-bench.version").write_text(version("fusion-bench"))


def merge(folder: Path, entry: dict[str, Any], lookups: list[str]) -> Weights:
    """Merge by the package's own algorithm, in float64."""
    folders = [folder / f"checkpoint-{i}" for i in range(entry["checkpoints"])]
    pool = Pool(loaded(folder / "base"), [loaded(path) for path in folders], folders)
    excluded = [name for name in pool.base.state_dict() if name.removeprefix(PREFIX) in lookups]
    options = {key: excluded if value == "LOOKUPS" else value for key, value in entry["options"].items()}
    special = SPECIAL.get(entry["method"])
    merged = special(pool, **options) if special else run(entry["method"], pool, options)
    return {name.removeprefix(PREFIX): tensor.detach().clone().contiguous() for name, tensor in merged.items()}


def loaded(folder: Path) -> nn.Module:
    """Return a model of transformers in float64, each of its weights from the file."""
    config = transformers.AutoConfig.from_pretrained(folder)
    model: nn.Module = getattr(transformers, config.architectures[0])(config).double()
    model.load_state_dict(named(load_file(folder / "model.safetensors"), model))
    return model


def named(weights: Weights, model: nn.Module) -> Weights:
    """Return the weights in float64 and with the names that they have in the model."""
    prefix = PREFIX if hasattr(model, "vision_model") else ""
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    return {prefix + name: tensor.double().reshape(shapes[prefix + name]) for name, tensor in weights.items()}


def run(method: str, pool: Pool, options: dict[str, Any]) -> Weights:
    """Run an algorithm of the package, named as MODULE:CLASS under fusion_bench.method, on a pool of models.

    DARE's masks are drawn with the numbers beside each checkpoint, in place of torch's generator. The package keeps what
    is over its sparsity, where a number under the density is to be kept: 1 - u, then.
    """
    module, name = method.split(":")
    turn = iter([1 - drawn[name] for drawn in pool.shipped("drawn") for name, _ in pool.base.named_parameters()])
    utils: Any = import_module("fusion_bench.method.dare.utils")
    utils.torch = Drawing(torch, lambda _: next(turn))
    models = {folder.name: model for folder, model in zip(pool.folders, pool.checkpoints, strict=True)}
    algorithm = getattr(import_module(f"fusion_bench.method.{module}"), name)(**options)
    merged: Weights = algorithm.run(BaseModelPool({"_pretrained_": pool.base} | models)).state_dict()
    return merged


@dataclass(frozen=True)
class Drawing:
    """Torch, but for its random numbers."""

    module: Any
    rand_like: Callable[[Tensor], Tensor]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.module, name)


def fisher(pool: Pool, **options: Any) -> Weights:
    """Return Fisher merging with the weights that lie beside each checkpoint."""
    module = import_module("fusion_bench.method.fisher_merging.fisher_merging")
    parameters = {name: [model.state_dict()[name] for model in pool.checkpoints] for name in pool.base.state_dict()}
    equal = torch.ones(len(pool.checkpoints))
    merged: Weights = module.merging_with_fisher_weights(parameters, pool.shipped("fisher"), equal, **options)
    return merged


def consensus(pool: Pool, *, tall_mask_lambda: float, threshold: int, scaling_factor: float) -> Weights:
    """Return Consensus Task Arithmetic of the package's masks, which it saves and loads as files in between.

    Its vector_to_state_dict writes into the tensors that it is given as an example, so that each mask needs its own.
    """
    tall: Any = import_module("fusion_bench.method.tall_mask.utils")
    theta0: Weights = pool.base.state_dict()
    flat0 = tall.state_dict_to_vector(theta0)
    flat = torch.stack([tall.state_dict_to_vector(model.state_dict()) for model in pool.checkpoints])
    found = tall.generate_task_masks(flat - flat0, flat, flat0, tall_mask_lambda=tall_mask_lambda)
    masks = {i: tall.vector_to_state_dict(mask.double(), deepcopy(theta0)) for i, mask in enumerate(found)}
    tall.load_tall_mask = lambda *_: masks
    kept = tall.construct_consensus_mask(theta0, threshold, None, remove_keys=[])
    merged: Weights = tall.vector_to_state_dict(flat0 + scaling_factor * (flat - flat0).sum(0) * kept, deepcopy(theta0))
    return merged


SPECIAL: dict[str, Callable[..., Weights]] = {
    "fisher_merging:merging_with_fisher_weights": fisher,
    "tall_mask:construct_consensus_mask": consensus,
}

if __name__ == "__main__":
    main(Path(sys.argv[1]))
