"""How an encoder learns: steps of AdamW; of all its weights, or of an adapter as PEFT writes one."""

import math
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Generator, Tensor

from ..kinds import Tuned, Weights

Loss = Callable[[Tensor], Tensor]  # of the pictures at these places
FISHER_BATCH = 8
RANK, ALPHA = 8, 16
PREFIX = "base_model.model."
WHOLE_RATE, ADAPTER_RATE = 6e-4, 4e-3


def optimize(parameters: list[Tensor], loss: Loss, shown: list[Tensor], rate: float, warm: float = 0.0) -> None:
    """Take a step for each batch; the rate rises during the share `warm` of them, then falls to nothing."""
    optimizer = torch.optim.AdamW(parameters, lr=rate, fused=True)

    def factor(step: int) -> float:
        rising = warm * len(shown)
        if step < rising:
            return (step + 1) / rising
        return 0.5 + 0.5 * math.cos(math.pi * (step - rising) / (len(shown) - rising))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    for batch in shown:
        optimizer.zero_grad()
        loss(batch).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()


def batches(count: int, size: int, steps: int, dice: Generator) -> list[Tensor]:
    """Return places for each step; each round through all `count` pictures is in a new random order."""
    whole = count // size * size
    order = [torch.randperm(count, generator=dice)[:whole] for _ in range(-(-steps * size // whole))]
    return [*torch.cat(order).view(-1, size)][:steps]


def copied(weights: Weights) -> Weights:
    """Return the same numbers, that nothing else will change."""
    return {name: weight.detach().clone() for name, weight in weights.items()}


class Learner(Protocol):
    """What is trained."""

    rate: float

    def trained(self) -> list[Tensor]:
        """Return what the optimizer changes."""
        ...

    def weights(self) -> Weights:
        """Return the encoder's weights as they are now."""
        ...

    def tuned(self, loss: Loss, places: Tensor) -> Tuned:
        """Return what came of it; the Fisher information is that of the pictures at these places."""
        ...


class Whole:
    """All the weights."""

    rate = WHOLE_RATE

    def __init__(self, base: Weights) -> None:
        self._weights = {name: weight.requires_grad_() for name, weight in copied(base).items()}

    def trained(self) -> list[Tensor]:
        """Return every weight."""
        return list(self._weights.values())

    def weights(self) -> Weights:
        """Return the encoder's weights as they are now."""
        return self._weights

    def tuned(self, loss: Loss, places: Tensor) -> Tuned:
        """Return the weights with the mean square of their gradients, over small batches."""
        squares = {name: torch.zeros_like(weight) for name, weight in self._weights.items()}
        parts = places.view(-1, FISHER_BATCH)
        for part in parts:
            gradients = torch.autograd.grad(loss(part), self.trained())
            for square, gradient in zip(squares.values(), gradients, strict=True):
                square.addcmul_(gradient, gradient, value=1 / len(parts))
        return Tuned(copied(self._weights), fisher=squares)


class Adapter:
    """LoRA: to each linear weight, alpha / rank times the product of a tall and a wide matrix."""

    rate = ADAPTER_RATE

    def __init__(self, base: Weights, dice: Generator) -> None:
        self._base = base
        self._factors: dict[str, tuple[Tensor, Tensor]] = {}
        for name, weight in base.items():
            if weight.ndim == 2:
                bound = weight.shape[1] ** -0.5  # as peft starts
                wide = bound * (2 * torch.rand(RANK, weight.shape[1], generator=dice) - 1)
                tall = torch.zeros(weight.shape[0], RANK)
                self._factors[name.removesuffix(".weight")] = (tall.requires_grad_(), wide.requires_grad_())

    def trained(self) -> list[Tensor]:
        """Return both factors of each linear weight."""
        return [factor for pair in self._factors.values() for factor in pair]

    def weights(self) -> Weights:
        """Return the base with the products added."""
        added = {f"{module}.weight": ALPHA / RANK * tall @ wide for module, (tall, wide) in self._factors.items()}
        return {name: weight + added[name] if name in added else weight for name, weight in self._base.items()}

    def tuned(self, loss: Loss, places: Tensor) -> Tuned:
        """Return the weights with the factors that made them, under PEFT's names."""
        factors = {}
        for module, (tall, wide) in self._factors.items():
            factors[f"{PREFIX}{module}.lora_A.weight"] = wide
            factors[f"{PREFIX}{module}.lora_B.weight"] = tall
        config: dict[str, Any] = {
            "peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "lora_dropout": 0.0, "bias": "none",
            "target_modules": list(self._factors), "inference_mode": True,
        }  # fmt: skip
        return Tuned(copied(self.weights()), adapter=copied(factors), adapter_config=config)
