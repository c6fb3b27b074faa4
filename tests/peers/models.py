"""Two small models that other packages can load, a Llama and a CLIP vision tower, and fine-tunes of them.

Weights are float64, so that no rounding of a file is measured.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

Shape = tuple[int, ...]
Weights = dict[str, Tensor]

LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "intermediate_size": 160,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 300,
    "tie_word_embeddings": False, "max_position_embeddings": 64, "torch_dtype": "float64",
}  # fmt: skip
CLIP = {
    "architectures": ["CLIPVisionModel"], "model_type": "clip_vision_model", "hidden_size": 48, "intermediate_size": 96,
    "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 32, "patch_size": 8, "torch_dtype": "float64",
}  # fmt: skip
CONFIGS: dict[str, dict[str, Any]] = {"llama": LLAMA, "clip": CLIP}


def shapes(model: str) -> dict[str, Shape]:
    """Return the shapes of a model's weights, by name."""
    return _llama() if model == "llama" else _clip()


def kinds(model: str) -> dict[str, str]:
    """Return how each weight is merged: a matrix, a lookup table or another."""
    return {name: _kind(name, shape) for name, shape in shapes(model).items()}


def make_base(model: str, seed: int) -> Weights:
    """Return the base model: weights of standard deviation 0.02, norms near 1."""
    generator = torch.Generator().manual_seed(seed)
    noise = {name: _noise(shape, generator) for name, shape in shapes(model).items()}
    return {name: 0.02 * z + float("norm" in name and name.endswith("weight")) for name, z in noise.items()}


def fine_tunes(base: Mapping[str, Tensor], count: int, seed: int) -> list[Weights]:
    """Return fine-tunes that go one way in part, and in part each its own: their task vectors have positive cosines."""
    common = _steps(base, torch.Generator().manual_seed(10_000 * seed))
    own = [_steps(base, torch.Generator().manual_seed(10_000 * seed + i)) for i in range(1, count + 1)]
    return [{name: base[name] + 0.7 * common[name] + steps[name] for name in base} for steps in own]


def save(folder: Path, model: str, weights: Mapping[str, Tensor]) -> None:
    """Write a model folder as the Hugging Face libraries lay it out."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIGS[model]))
    save_file(dict(weights), folder / "model.safetensors", {"format": "pt"})


def _steps(base: Mapping[str, Tensor], generator: torch.Generator) -> Weights:
    """A fifth of each matrix's directions, of falling size, and noise; elsewhere noise alone."""
    steps = {}
    for name, weight in base.items():
        steps[name] = 3e-4 * _noise(weight.shape, generator)
        if weight.ndim == 2:
            rank = max(1, min(weight.shape) // 5)
            left, right = _noise((weight.shape[0], rank), generator), _noise((rank, weight.shape[1]), generator)
            steps[name] += 2e-3 * (left * 0.8 ** torch.arange(rank)) @ right
    return steps


def _noise(shape: Shape, generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def _kind(name: str, shape: Shape) -> str:
    if "embed_tokens" in name or "position_embedding" in name:
        return "lookup"
    return "matrix" if len(shape) == 2 else "other"


def _llama() -> dict[str, Shape]:
    hidden, wide, tokens = 64, 160, 300  # as in LLAMA
    layer: dict[str, Shape] = {
        "input_layernorm": (hidden,), "post_attention_layernorm": (hidden,), "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (32, hidden), "self_attn.v_proj": (32, hidden), "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (wide, hidden), "mlp.up_proj": (wide, hidden), "mlp.down_proj": (hidden, wide),
    }  # fmt: skip
    layers = {f"model.layers.{i}.{name}.weight": shape for i in range(2) for name, shape in layer.items()}
    ends: dict[str, Shape] = {"embed_tokens": (tokens, hidden), "norm": (hidden,)}
    return (
        layers | {f"model.{name}.weight": shape for name, shape in ends.items()} | {"lm_head.weight": (tokens, hidden)}
    )


def _clip() -> dict[str, Shape]:
    hidden, wide = 48, 96  # as in CLIP
    layer: dict[str, Shape] = {f"self_attn.{which}_proj": (hidden, hidden) for which in ("k", "v", "q", "out")}
    layer |= {"mlp.fc1": (wide, hidden), "mlp.fc2": (hidden, wide), "layer_norm1": (hidden,), "layer_norm2": (hidden,)}
    modules = {f"encoder.layers.{i}.{name}": shape for i in range(2) for name, shape in layer.items()}
    modules |= {"pre_layrnorm": (hidden,), "post_layernorm": (hidden,)}
    found: dict[str, Shape] = {
        "embeddings.class_embedding": (hidden,),
        "embeddings.patch_embedding.weight": (hidden, 3, 8, 8),
        "embeddings.position_embedding.weight": (17, hidden),
    }
    for name, shape in modules.items():
        found |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    return found
