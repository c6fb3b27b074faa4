"""LoRA as peft trains and writes it: a product of two thin matrices beside every linear weight, which is frozen."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from quality.kinds import Weights

RANK, ALPHA = 8, 16
SCALE = ALPHA / RANK
MODULES = ("query", "key", "value", "dense")
PREFIX = "base_model.model."
ADAPTER_CONFIG: Mapping[str, Any] = {
    "peft_type": "LORA",
    "task_type": "FEATURE_EXTRACTION",
    "r": RANK,
    "lora_alpha": ALPHA,
    "lora_dropout": 0.0,
    "bias": "none",
    "fan_in_fan_out": False,
    "init_lora_weights": True,
    "use_rslora": False,
    "use_dora": False,
    "target_modules": list(MODULES),
}


class Adapted(nn.Module):
    """A linear map, frozen, and the product beside it."""

    def __init__(self, linear: nn.Linear, dice: torch.Generator) -> None:
        super().__init__()
        self.linear = linear.requires_grad_(False)
        bound = 1 / math.sqrt(linear.in_features)
        self.A = nn.Parameter((2 * torch.rand(RANK, linear.in_features, generator=dice) - 1) * bound)
        self.B = nn.Parameter(torch.zeros(linear.out_features, RANK))

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., in)."""
        whole: Tensor = self.linear(x)
        return whole + SCALE * (x @ self.A.T @ self.B.T)


def adapt(encoder: nn.Module, dice: torch.Generator) -> None:
    """Freeze all that is there, and put a product beside each linear map."""
    encoder.requires_grad_(False)
    linear = [(name, module) for name, module in encoder.named_modules() if isinstance(module, nn.Linear)]
    for name, module in linear:
        parent, _, own = name.rpartition(".")
        setattr(encoder.get_submodule(parent), own, Adapted(module, dice))


def factors(encoder: nn.Module) -> Weights:
    """Return the trained factors under peft's names."""
    pairs: Weights = {}
    for name, module in encoder.named_modules():
        if isinstance(module, Adapted):
            pairs[f"{PREFIX}{name}.lora_A.weight"] = module.A.detach().clone()
            pairs[f"{PREFIX}{name}.lora_B.weight"] = module.B.detach().clone()
    return pairs


def products(base: Weights, pairs: Weights) -> Weights:
    """Return the weights that the factors change, with their products added."""
    changed = {}
    for name in pairs:
        if name.endswith(".lora_A.weight"):
            stem = name.removesuffix(".lora_A.weight")
            weight = stem.removeprefix(PREFIX) + ".weight"
            changed[weight] = base[weight] + SCALE * (pairs[f"{stem}.lora_B.weight"] @ pairs[name])
    return changed
