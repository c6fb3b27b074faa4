"""The models that are merged: their shapes, and random weights of them on disk, written block by block."""

import json
import shutil
from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any

import torch

Shapes = Mapping[str, tuple[int, ...]]
DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16"}
ROWS = 8192  # of a block
STEP = 0.05  # of a fine-tune's task vector, where the base model's weights have 1


def clip_config(hidden: int = 768, layers: int = 12, image: int = 224) -> dict[str, Any]:
    """Return the config.json of a CLIP vision tower; by default that of ViT-B/32."""
    return {
        "architectures": ["CLIPVisionModel"], "model_type": "clip_vision_model", "hidden_size": hidden,
        "intermediate_size": 4 * hidden, "num_hidden_layers": layers, "num_attention_heads": hidden // 64,
        "image_size": image, "patch_size": 32, "torch_dtype": "float32",
    }  # fmt: skip


def clip_shapes(config: Mapping[str, Any]) -> Shapes:
    """Return the weights of a CLIP vision tower, as transformers 4 names them."""
    hidden, wide, patch = config["hidden_size"], config["intermediate_size"], config["patch_size"]
    modules: dict[str, tuple[int, ...]] = {"pre_layrnorm": (hidden,), "post_layernorm": (hidden,)}
    for layer in range(config["num_hidden_layers"]):
        modules |= {f"encoder.layers.{layer}.{name}": shape for name, shape in _clip_layer(hidden, wide).items()}
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.class_embedding": (hidden,),
        "embeddings.patch_embedding.weight": (hidden, 3, patch, patch),
        "embeddings.position_embedding.weight": ((config["image_size"] // patch) ** 2 + 1, hidden),
    }
    for name, shape in modules.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    return {f"vision_model.{name}": shape for name, shape in shapes.items()}


def _clip_layer(hidden: int, wide: int) -> dict[str, tuple[int, ...]]:
    layer: dict[str, tuple[int, ...]] = {
        f"self_attn.{which}_proj": (hidden, hidden) for which in ("k", "v", "q", "out")
    }
    return layer | {
        "mlp.fc1": (wide, hidden), "mlp.fc2": (hidden, wide), "layer_norm1": (hidden,), "layer_norm2": (hidden,),
    }  # fmt: skip


def llama_config(hidden: int, wide: int, layers: int, tokens: int, narrow: int | None = None) -> dict[str, Any]:
    """Return the config.json of a Llama in bfloat16; `narrow` is the width of keys and values, where it is another."""
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": hidden, "vocab_size": tokens,
        "intermediate_size": wide, "num_hidden_layers": layers, "num_attention_heads": hidden // 64,
        "num_key_value_heads": (narrow or hidden) // 64, "head_dim": 64, "tie_word_embeddings": False,
        "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "torch_dtype": "bfloat16",
    }  # fmt: skip


def llama_shapes(config: Mapping[str, Any]) -> Shapes:
    """Return the weights of a Llama."""
    hidden, wide, tokens = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    narrow = config["num_key_value_heads"] * config["head_dim"]
    layer: dict[str, tuple[int, ...]] = {
        "self_attn.q_proj": (hidden, hidden), "self_attn.k_proj": (narrow, hidden),
        "self_attn.v_proj": (narrow, hidden), "self_attn.o_proj": (hidden, hidden), "mlp.gate_proj": (wide, hidden),
        "mlp.up_proj": (wide, hidden), "mlp.down_proj": (hidden, wide), "input_layernorm": (hidden,),
        "post_attention_layernorm": (hidden,),
    }  # fmt: skip
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (tokens, hidden), "lm_head.weight": (tokens, hidden), "model.norm.weight": (hidden,)
    }  # fmt: skip
    for number in range(config["num_hidden_layers"]):
        shapes |= {f"model.layers.{number}.{name}.weight": shape for name, shape in layer.items()}
    return shapes


def square_shapes(gigabytes: float, side: int) -> Shapes:
    """Return so many gigabytes of square matrices in float32, with a bias each."""
    count = max(1, round(gigabytes * 1e9 / (4 * side * side)))
    weights = {f"layers.{i}.proj.weight": (side, side) for i in range(count)}
    return weights | {f"layers.{i}.proj.bias": (side,) for i in range(count)}


def parameters(shapes: Shapes) -> int:
    """Return how many numbers a model has."""
    return sum(prod(shape) for shape in shapes.values())


def make_model(
    folder: Path, seed: int, shapes: Shapes, dtype: torch.dtype = torch.float32, config: Mapping[str, Any] | None = None
) -> Path:
    """Write a model: the base model where the seed is 0, else a fine-tune of it, of its own; returns the folder."""
    folder.mkdir(parents=True)
    if config:
        (folder / "config.json").write_text(json.dumps(config))
    with (folder / "model.safetensors").open("wb") as file:
        file.write(_header(shapes, dtype))
        for number, shape in enumerate(shapes.values()):
            for block in _blocks(number, shape, seed):
                file.write(block.to(dtype).view(torch.uint8).numpy().data)
    return folder


def _header(shapes: Shapes, dtype: torch.dtype) -> bytes:
    end, entries = 0, {}
    for name, shape in shapes.items():
        start, end = end, end + prod(shape) * dtype.itemsize
        entries[name] = {"dtype": DTYPES[dtype], "shape": shape, "data_offsets": (start, end)}
    text = json.dumps({"__metadata__": {"format": "pt"}} | entries).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _blocks(number: int, shape: tuple[int, ...], seed: int) -> Iterator[torch.Tensor]:
    """Yield one weight in blocks of rows."""
    for start in range(0, shape[0], ROWS):
        rows = (min(ROWS, shape[0] - start), *shape[1:])
        base = torch.randn(rows, generator=torch.Generator().manual_seed(number * 1000 + start // ROWS))
        step = torch.Generator().manual_seed(seed * 10**6 + number * 1000 + start // ROWS)
        yield base.add_(torch.randn(rows, generator=step), alpha=STEP) if seed else base


def make_pool(
    folder: Path,
    count: int,
    shapes: Shapes,
    dtype: torch.dtype = torch.float32,
    config: Mapping[str, Any] | None = None,
) -> tuple[Path, list[Path]]:
    """Write a base model and so many fine-tunes; returns their folders."""
    base = make_model(folder / "base", 0, shapes, dtype, config)
    return base, [make_model(folder / f"fine-tune-{i:04d}", i, shapes, dtype, config) for i in range(1, count + 1)]


def remove(*folders: Path) -> None:
    """Delete model folders."""
    for folder in folders:
        shutil.rmtree(folder)
