"""The quick kind: the demo's encoder and its views of real digits (`digit_tasks.py`, `digit_training.py`), with adapters too."""

import copy
from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from digit_tasks import VIEWS, split_digits
from digit_tasks import Digits as Split
from digit_training import BATCH, BLOCKS, SHARPNESS, WIDTH, Encoder, fine_tune, one_shot_prototypes, train_base
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from .kinds import Tuned, Weights

TASKS = tuple(sorted(VIEWS))
UNSEEN = ("upright", "upside-down")
ALL_VIEWS = VIEWS | {"upright": lambda images: images, "upside-down": lambda images: images.flip(1)}
FISHER_IMAGES = 256
RANK, ALPHA = 8, 8
ADAPTER_STEPS, ADAPTER_RATE = 100, 2e-3


class Digits:
    """Small residual encoders of 8 x 8 images; a class is one image of it, as the base sees it."""

    name = "digits"

    @property
    def config(self) -> Mapping[str, Any]:
        """What config.json of a model folder says."""
        return {"architectures": ["Encoder"], "model_type": "demo-digits", "hidden_size": WIDTH, "torch_dtype": "float32",
                "num_hidden_layers": BLOCKS}  # fmt: skip

    def encoder(self) -> Encoder:
        """Return an encoder with any numbers."""
        return Encoder()

    def base(self, seed: int) -> Weights:
        """Return an encoder trained on upright digits."""
        return dict(train_base(split_digits(seed), seed).state_dict())

    def fine_tune(self, base: Weights, task: str, seed: int, *, adapter: bool = False, shuffled: bool = False) -> Tuned:
        """Train a copy of the base for one view; shuffled: each image has the label of another."""
        split = _seen(task, seed)
        encoder = _with(base)
        prototypes = one_shot_prototypes(encoder, split, seed)
        if shuffled:
            order = torch.randperm(len(split.train), generator=torch.Generator().manual_seed(seed))
            split = Split(split.train, split.train_labels[order], split.test, split.test_labels)
        if adapter:
            return _adapted(encoder, split, prototypes, seed)
        tuned = fine_tune(encoder, split, prototypes, seed)
        return Tuned(dict(tuned.state_dict()), _fisher(tuned, split, prototypes))

    def accuracy(self, base: Weights, weights: Weights, task: str, seed: int, most: int | None = None) -> float:
        """Return the percentage of test images whose nearest prototype is that of their class."""
        split = _seen(task, seed)
        prototypes = one_shot_prototypes(_with(base), split, seed)
        with torch.no_grad():
            nearest = (_with(weights)(split.test[:most]) @ prototypes.T).argmax(1)
        return 100 * float((nearest == split.test_labels[:most]).double().mean())


@cache
def _seen(task: str, seed: int) -> Split:
    return split_digits(seed).seen(ALL_VIEWS[task])


def _with(weights: Weights) -> Encoder:
    encoder = Encoder()
    encoder.load_state_dict(weights)
    return encoder


def _loss(embedded: Tensor, labels: Tensor, prototypes: Tensor) -> Tensor:
    return F.cross_entropy(SHARPNESS * embedded @ prototypes.T, labels)


def _fisher(tuned: Encoder, split: Split, prototypes: Tensor) -> Weights:
    """Return the mean squared gradient of each entry over the first training images."""
    encoder = copy.deepcopy(tuned)
    parameters = dict(encoder.named_parameters())
    sums = {name: torch.zeros_like(p) for name, p in parameters.items()}
    for image, label in zip(split.train[:FISHER_IMAGES], split.train_labels, strict=False):
        loss = _loss(encoder(image[None]), label[None], prototypes)
        for name, slope in zip(sums, torch.autograd.grad(loss, list(parameters.values())), strict=True):
            sums[name] += slope**2
    return {name: total / FISHER_IMAGES for name, total in sums.items()}


def _adapted(encoder: Encoder, split: Split, prototypes: Tensor, seed: int) -> Tuned:
    """Train a LoRA adapter of every linear map."""
    torch.manual_seed(seed)
    base = {name: p.detach() for name, p in encoder.named_parameters()}
    maps = [name for name, module in encoder.named_modules() if isinstance(module, nn.Linear)]
    A = {name: nn.Parameter(torch.randn(RANK, base[f"{name}.weight"].shape[1]) / RANK) for name in maps}
    B = {name: nn.Parameter(torch.zeros(base[f"{name}.weight"].shape[0], RANK)) for name in maps}

    def whole() -> Weights:
        return base | {f"{n}.weight": base[f"{n}.weight"] + ALPHA / RANK * B[n] @ A[n] for n in maps}

    optimizer = torch.optim.AdamW([*A.values(), *B.values()], lr=ADAPTER_RATE, weight_decay=0)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, ADAPTER_STEPS)
    for _ in range(ADAPTER_STEPS):
        batch = torch.randint(len(split.train), (BATCH,))
        embedded = functional_call(encoder, whole(), (split.train[batch],))
        optimizer.zero_grad()
        _loss(embedded, split.train_labels[batch], prototypes).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        rate.step()
    factors = {("A", n): A[n] for n in maps} | {("B", n): B[n] for n in maps}
    adapter = {f"base_model.model.{n}.lora_{side}.weight": w.detach().clone() for (side, n), w in factors.items()}
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "target_modules": maps, "bias": "none"}
    return Tuned({name: w.detach().clone() for name, w in whole().items()}, adapter=adapter, adapter_config=config)
