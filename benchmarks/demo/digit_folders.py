"""Model folders as the Hugging Face libraries lay them out, and plain averaging over them (knows nothing of mergd)."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from digit_training import BLOCKS, WIDTH, Encoder
from safetensors.torch import load_file, save_file
from torch import Tensor

CONFIG = {
    "architectures": ["Encoder"],
    "model_type": "demo-digits",
    "hidden_size": WIDTH,
    "num_hidden_layers": BLOCKS,
    "torch_dtype": "float32",
}


def write_folder(encoder: Encoder, folder: Path) -> Path:
    """Write `folder` with a config.json and a model.safetensors, and return it."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIG, indent=2) + "\n")
    save_file(encoder.state_dict(), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Return the weights of a model folder by name."""
    return load_file(folder / "model.safetensors")


def with_weights(weights: dict[str, Tensor]) -> Encoder:
    """Return an encoder that holds exactly these weights."""
    encoder = Encoder()
    encoder.load_state_dict(weights)
    return encoder


def plain_average(base: Path, fine_tunes: Sequence[Path]) -> dict[str, Tensor]:
    """Return base + the mean of the task vectors."""
    weights, tuned = read_weights(base), [read_weights(folder) for folder in fine_tunes]
    return {name: w + torch.stack([t[name] - w for t in tuned]).mean(0) for name, w in weights.items()}
