"""Hostile and odd adapters: an adapter's configuration is a stranger's JSON, and the scale of its weights hangs on it."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from support.models import drop_adapter, save_lone, save_model, tiny_base

Expected = Literal["admitted", "refused", "incomplete"]
CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
MIB = 2**20


def with_config(**values: Any) -> Callable[[Path], None]:
    """Return how an adapter with these values in its configuration is made."""
    return lambda place: _write(place, **values)


def _write(place: Path, **values: Any) -> None:
    drop_adapter(place, **values)


def with_text(text: bytes) -> Callable[[Path], None]:
    """Return how an adapter with this for a configuration is made."""

    def make(place: Path) -> None:
        (drop_adapter(place) / CONFIG).write_bytes(text)

    return make


def with_tensors(tensors: dict[str, torch.Tensor], **values: Any) -> Callable[[Path], None]:
    """Return how an adapter of these tensors is made."""

    def make(place: Path) -> None:
        save_lone(drop_adapter(place, **values) / WEIGHTS, tensors)

    return make


def instead(name: str, put: Callable[[Path], object]) -> Callable[[Path], None]:
    """Return how an adapter is made in which something else lies where one of its files should."""

    def make(place: Path) -> None:
        path = drop_adapter(place) / name
        path.unlink()
        put(path)

    return make


def pair(B: tuple[int, ...], A: tuple[int, ...], module: str = "layer.matrix") -> dict[str, torch.Tensor]:
    """Return factors of zeros of these shapes."""
    prefix = f"base_model.model.{module}."
    return {f"{prefix}lora_B.weight": torch.zeros(B), f"{prefix}lora_A.weight": torch.zeros(A)}


def beside_the_model(place: Path) -> None:
    """Write a full model that has an adapter's files beside it."""
    save_model(drop_adapter(place), tiny_base())


ADAPTERS: dict[str, tuple[Expected, Callable[[Path], None]]] = {
    "of the base model": ("admitted", with_config()),
    "with rank and alpha by pattern": (
        "admitted",
        with_config(r=4, rank_pattern={"matrix": 4, ".*tall": 2}, alpha_pattern={"layer.matrix": 3}),
    ),
    "of rank 1, unknown keys beside": ("admitted", with_config(r=1, lora_alpha=1, brand_new=None, other=False)),
    "with an option that nobody knows": ("refused", with_config(brand_new={"a": [1, None]})),
    "of a tall map": ("admitted", with_tensors(pair((9, 4), (4, 4), "layer.tall"))),
    "of a wide map, stored the other way round": ("admitted", with_tensors(pair((9, 4), (4, 4), "layer.wide"))),
    "of an embedding": (
        "admitted",
        with_tensors(
            {
                "base_model.model.embed_tokens.lora_embedding_A": torch.zeros(4, 11),
                "base_model.model.embed_tokens.lora_embedding_B": torch.zeros(6, 4),
            }
        ),
    ),
    "with a bias that was trained whole": (
        "admitted",
        with_tensors(pair((6, 4), (4, 6)) | {"base_model.model.layer.matrix.bias": torch.zeros(6)}),
    ),
    "beside a full model": ("admitted", beside_the_model),
    "without its configuration": ("incomplete", instead(CONFIG, lambda path: None)),
    "without its weights": ("incomplete", instead(WEIGHTS, lambda path: None)),
    "half a configuration": ("incomplete", with_text(b'{"peft_type": "LO')),
    "a configuration nested without end": ("incomplete", with_text(b"[" * MIB)),
    "a configuration that is a list": ("refused", with_text(b"[1]")),
    "a configuration of 5 MiB": ("refused", with_text(b'{"a": "' + b" " * 5 * MIB + b'"}')),
    "a configuration that is a pipe": ("refused", instead(CONFIG, os.mkfifo)),
    "weights that are a pipe": ("refused", instead(WEIGHTS, os.mkfifo)),
    "pickled": ("refused", instead(WEIGHTS, lambda path: path.with_suffix(".bin").write_bytes(b"\x80\x02."))),
    "no kind": ("refused", with_config(peft_type=None)),
    "a kind of terminal escapes": ("refused", with_config(peft_type="\x1b[31mLORA\n")),
    "a pattern that backtracks for ever": ("refused", with_config(alpha_pattern={"(a|a)*b" + "(x+x+)+y": 1})),
    "many patterns": ("refused", with_config(alpha_pattern={f".*{k}x": 1 for k in range(5000)})),
    "a pattern that is none": ("refused", with_config(rank_pattern={"(": 4})),
    "patterns that are a list": ("refused", with_config(rank_pattern=[4])),
    "rank 0": ("refused", with_config(r=4, rank_pattern={"matrix": 0})),
    "a rank below zero": ("refused", with_config(r=4, rank_pattern={"matrix": -4})),
    "a rank of a thousand digits": ("refused", with_config(r=4, rank_pattern={"matrix": 10**999})),
    "a rank that is a text": ("refused", with_config(r=4, rank_pattern={"matrix": "4"})),
    "an alpha that is no number": ("refused", with_config(lora_alpha=float("nan"))),
    "an alpha without end": ("refused", with_config(lora_alpha=float("inf"))),
    "another rank than it says": ("refused", with_config(r=4, rank_pattern={"matrix": 3})),
    "factors that do not meet": ("refused", with_tensors(pair((6, 4), (3, 6)))),
    "factors of vectors": ("refused", with_tensors(pair((6,), (6,)))),
    "factors of no rank": ("refused", with_tensors(pair((6, 0), (0, 6)))),
    "one factor alone": ("refused", with_tensors({"base_model.model.layer.matrix.lora_A.weight": torch.zeros(4, 6)})),
    "of a module that the base has not": ("refused", with_tensors(pair((6, 4), (4, 6), "layer.other"))),
    "of another shape": ("refused", with_tensors(pair((7, 4), (4, 6)))),
    "of integers": (
        "refused",
        with_tensors({name: tensor.to(torch.int8) for name, tensor in pair((6, 4), (4, 6)).items()}),
    ),
    "of tensors that nobody knows": ("refused", with_tensors(pair((6, 4), (4, 6)) | {"x.lora_E": torch.zeros(4, 1)})),
    "of nothing": ("refused", with_tensors({})),
}
