"""Tiny models on disk: a base model with a weight of each kind, and fine-tunes of it, saved by safetensors' own library."""

import json
from collections.abc import Mapping
from math import sqrt
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

Model = dict[str, Tensor]
CONFIG = {"model_type": "made-up", "hidden_size": 6}
MATRICES = ("layer.matrix.weight", "layer.tall.weight", "layer.wide.weight")


def tiny_base(seed: int = 0, dtype: torch.dtype = torch.float32) -> Model:
    """Return a model with a square, a tall and a wide matrix, a bias, a lookup table and an integer buffer."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {
        "embed_tokens.weight": (11, 6),
        "layer.matrix.weight": (6, 6),
        "layer.matrix.bias": (6,),
        "layer.tall.weight": (9, 4),
        "layer.wide.weight": (4, 9),
    }
    model = {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}
    return model | {"position_ids": torch.arange(5)}


def fine_tuned(base: Mapping[str, Tensor], seed: int, size: float = 0.1) -> Model:
    """Return a fine-tune: noise of standard deviation `size` on every floating weight, in the base's dtype."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: (tensor + size * torch.randn(tensor.shape, generator=generator)).to(tensor.dtype)
        if tensor.is_floating_point()
        else tensor.clone()
        for name, tensor in base.items()
    }


def save_model(folder: Path, model: Mapping[str, Tensor], config: Mapping[str, Any] | None = CONFIG) -> Path:
    """Write a model folder with one weight file, and config.json unless it is None; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    save_lone(folder / "model.safetensors", model)
    return folder


def save_sharded(folder: Path, model: Mapping[str, Tensor], shards: int = 2) -> Path:
    """Write a model folder whose weights are dealt out to shards, with an index; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"model-{k:05d}-of-{shards:05d}.safetensors" for k in range(1, shards + 1)]
    weight_map = {name: names[i % shards] for i, name in enumerate(model)}
    for shard in names:
        save_lone(folder / shard, {name: model[name] for name in model if weight_map[name] == shard})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def save_lone(path: Path, model: Mapping[str, Tensor]) -> Path:
    """Write one weight file; returns its path."""
    save_file({name: tensor.contiguous() for name, tensor in model.items()}, path, {"format": "pt"})
    return path


def load_model(folder: Path) -> Model:
    """Return all weights of a model folder, as safetensors' own library reads them."""
    return {name: tensor for path in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(path).items()}


def task_vector(model: Mapping[str, Tensor], base: Mapping[str, Tensor]) -> Model:
    """Return model minus base, float64, for the floating weights."""
    return {name: model[name].double() - base[name].double() for name in base if base[name].is_floating_point()}


def norm(weights: Mapping[str, Tensor]) -> float:
    """Return the Frobenius norm of a whole model, gathered in float64."""
    return sqrt(sum(float(tensor.double().norm()) ** 2 for tensor in weights.values()))


def weight_errors(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, float]:
    """Return the relative error of each weight: norm(found - expected) / norm(expected)."""
    assert found.keys() == expected.keys()
    return {
        name: float((found[name].double() - tensor.double()).norm() / (tensor.double().norm() or 1.0))
        for name, tensor in expected.items()
    }


def drop_adapter(place: Path, r: int = 4, lora_alpha: float = 4, **config: Any) -> Path:
    """Write an adapter of the square matrix of `tiny_base`, with no library's help; returns its folder."""
    place.mkdir(parents=True)
    generator = torch.Generator().manual_seed(r)
    module = "base_model.model.layer.matrix"
    B, A = (0.01 * torch.randn(shape, generator=generator) for shape in ((6, r), (r, 6)))
    save_lone(place / "adapter_model.safetensors", {f"{module}.lora_B.weight": B, f"{module}.lora_A.weight": A})
    (place / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "r": r, "lora_alpha": lora_alpha} | config)
    )
    return place
