"""Adapters as people make them: by the peft library, with random factors, beside what its own merge_and_unload gives."""

import copy
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, get_peft_model
from support.models import Model, save_model
from torch import Tensor, nn
from tqdm import tqdm
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

tqdm.monitor_interval = 0  # no thread that watches progress bars


def llama(**config: Any) -> LlamaForCausalLM:
    """Return a decoder of two layers, with grouped keys and values."""
    small = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 40}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": False}
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**(small | heads | config)))


def gpt2(**config: Any) -> GPT2LMHeadModel:
    """Return GPT-2, whose linear maps are stored as (in, out)."""
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(n_embd=24, n_layer=2, n_head=2, vocab_size=40, n_positions=16, **config))


class Small(nn.Module):
    """A convolution, an embedding, linear maps square and not, and a head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 8, 3)
        self.point = nn.Conv2d(8, 8, 1)
        self.table = nn.Embedding(20, 16)
        self.square = nn.Linear(16, 16)
        self.wide = nn.Linear(16, 32)
        self.norm = nn.LayerNorm(32)
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        return x


class Kernel(nn.Module):
    """A convolution of one dimension whose name does not say so."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.mix = nn.Conv1d(4, 8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return x


def weights_of(model: nn.Module) -> Model:
    """Return a model's weights as a checkpoint stores them: a tied one once."""
    found, seen = Model(), set[int]()
    for name, tensor in model.state_dict().items():
        if tensor.data_ptr() not in seen:
            seen.add(tensor.data_ptr())
            found[name] = tensor.detach().clone()
    return found


def save_base(folder: Path, model: nn.Module) -> Path:
    """Write the base model's folder."""
    config: Any = getattr(model, "config", None)
    config = config.to_dict() if config else None
    return save_model(folder, weights_of(model), config)


def save_adapter(
    folder: Path, base: nn.Module, config: PeftConfig, seed: int = 1, dtype: torch.dtype = torch.float32
) -> Model:
    """Train-by-chance an adapter of `base` and save it; returns the weights that peft itself merges it to, float64."""
    torch.manual_seed(seed)
    model = get_peft_model(copy.deepcopy(base), config)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            noise = 0.3 * torch.randn_like(parameter)
            parameter.data = noise + (parameter.data if "magnitude" in name or "lora_" not in name else 0)
            parameter.data = parameter.data.to(dtype).float()  # so that peft computes in float32 with these values
    model.save_pretrained(str(folder))
    if dtype != torch.float32:
        _store_as(folder / "adapter_model.safetensors", dtype)
    return weights_of(model.double().merge_and_unload())


def _store_as(path: Path, dtype: torch.dtype) -> None:
    from safetensors.torch import load_file, save_file

    save_file({name: tensor.to(dtype) for name, tensor in load_file(path).items()}, path, {"format": "pt"})
