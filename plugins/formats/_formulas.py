"""The formulas of adapters: how the tensors that an adapter stores make a weight's task vector.

The names are those of the papers and of the peft library, whose `merge_and_unload` is what each one equals.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod

import torch
from torch import Tensor

from ..rules.interface import LowRank
from .interface import Part, Read, Whole

Shape = tuple[int, ...]
Base = Callable[[], Tensor]


@dataclass(frozen=True)
class Lora:
    """D = scale x B A (Hu et al., arXiv 2106.09685), of a linear map, an embedding or a convolution; kept as factors."""

    B: str
    A: str
    scale: float  # alpha / r, or alpha / sqrt(r) for rsLoRA (arXiv 2312.03732)
    rank: int
    product: Shape  # of B A: (out, in), or (out, in, k, k)
    fan_in_fan_out: bool = False  # whether a square weight is stored as (in, out), as GPT-2's Conv1D is
    embedding: bool = False  # whose product is always turned
    shape: Shape = ()  # the weight's, once fitted

    @property
    def tensors(self) -> tuple[str, ...]:
        """B and A."""
        return self.B, self.A

    @property
    def strength(self) -> tuple[int, float]:
        """Its rank and scale."""
        return self.rank, self.scale

    @property
    def factor_rank(self) -> int:
        """Its rank: the task vector is given as two factors."""
        return self.rank

    @property
    def turned(self) -> bool:
        """Whether the weight is stored as (in, out)."""
        square = len(self.shape) == 2 and self.shape[0] == self.shape[1]
        return self.fan_in_fan_out if square else self.shape != self.product

    def fit(self, shape: Shape, turned: bool | None = None) -> "Lora | None":
        """A linear map may be stored either way round, which a square one does not show: then `turned` tells, if known.

        `fan_in_fan_out` is what peft noted of the module that it visited last, whatever the others are.
        """
        fits = shape == self.product or (len(shape) == 2 and shape == self.product[::-1])
        stored = self.fan_in_fan_out if turned is None or self.embedding else turned
        return replace(self, shape=shape, fan_in_fan_out=stored) if fits else None

    def task_vector(self, read: Read, base: Base) -> LowRank:
        """Return the factors, float32; the scale is in B."""
        B, A = read(self.B).float(), read(self.A).float()
        B, A = B.reshape(B.shape[0], -1) * self.scale, A.reshape(A.shape[0], -1)  # (out, r), (r, in x k x k)
        return LowRank(A.T.contiguous(), B.T.contiguous(), self.shape) if self.turned else LowRank(B, A, self.shape)


@dataclass(frozen=True)
class Dora:
    """W' = m (W + D) / ||W + D||, the norm of each output's row (Liu et al., arXiv 2402.09353)."""

    lora: Lora
    magnitude: str  # m, (out,)

    @property
    def tensors(self) -> tuple[str, ...]:
        """Those of the low-rank part, and m."""
        return (*self.lora.tensors, self.magnitude)

    @property
    def strength(self) -> tuple[int, float]:
        """Those of its low-rank part."""
        return self.lora.strength

    def fit(self, shape: Shape, turned: bool | None = None) -> "Dora | None":
        """As its low-rank part does."""
        lora = self.lora.fit(shape, turned) if len(shape) == 2 else None
        return replace(self, lora=lora) if lora else None

    def task_vector(self, read: Read, base: Base) -> Tensor:
        """Return W' - W, float32."""
        W = base().float()
        moved: Tensor = self.lora.task_vector(read, base).added_to(W)
        m = read(self.magnitude).float().reshape(-1)
        norms = torch.linalg.vector_norm(moved, dim=0 if self.lora.turned else 1)  # (out,)
        factor = m / norms
        changed: Tensor = moved * (factor if self.lora.turned else factor[:, None])
        return changed - W


@dataclass(frozen=True)
class Loha:
    """D = scale x (w1_a w1_b) * (w2_a w2_b), a Hadamard product (FedPara, arXiv 2108.06098)."""

    w1_a: str
    w1_b: str
    w2_a: str
    w2_b: str
    scale: float
    rank: int
    product: Shape  # (out, in), or (out, in x k x k)
    shape: Shape = ()

    @property
    def tensors(self) -> tuple[str, ...]:
        """The four factors."""
        return self.w1_a, self.w1_b, self.w2_a, self.w2_b

    @property
    def strength(self) -> tuple[int, float]:
        """Its rank and scale."""
        return self.rank, self.scale

    def fit(self, shape: Shape, turned: bool | None = None) -> "Loha | None":
        """It is reshaped to the weight's shape."""
        fits = len(shape) >= 2 and (shape[0], prod(shape[1:])) == self.product
        return replace(self, shape=shape) if fits else None

    def task_vector(self, read: Read, base: Base) -> Tensor:
        """Return D, float32."""
        w1_a, w1_b, w2_a, w2_b = (read(name).float() for name in self.tensors)
        return ((w1_a @ w1_b) * (w2_a @ w2_b) * self.scale).reshape(self.shape)


@dataclass(frozen=True)
class Lokr:
    """D = scale x kron(w1, w2), either factor stored whole or as a product (LyCORIS, arXiv 2309.14859)."""

    w1: tuple[str, ...]  # one tensor, or two whose product it is
    w2: tuple[str, ...]
    scale: float
    rank: int
    product: Shape  # (out, in), or (out, in, k, k) where w2 is stored whole
    shape: Shape = ()

    @property
    def tensors(self) -> tuple[str, ...]:
        """Those of both factors."""
        return self.w1 + self.w2

    @property
    def strength(self) -> tuple[int, float]:
        """Its rank and scale."""
        return self.rank, self.scale

    def fit(self, shape: Shape, turned: bool | None = None) -> "Lokr | None":
        """It is reshaped to the weight's shape."""
        flat = (shape[0], prod(shape[1:])) if len(shape) >= 2 else shape
        return replace(self, shape=shape) if (self.product[0], prod(self.product[1:])) == flat else None

    def task_vector(self, read: Read, base: Base) -> Tensor:
        """Return D, float32."""
        w1, w2 = self._factor(read, self.w1), self._factor(read, self.w2)
        w1 = w1.reshape(*w1.shape, *[1] * (w2.ndim - 2))
        return (torch.kron(w1, w2.contiguous()) * self.scale).reshape(self.shape)

    @staticmethod
    def _factor(read: Read, names: tuple[str, ...]) -> Tensor:
        first, *rest = (read(name).float() for name in names)
        return first @ rest[0] if rest else first


@dataclass(frozen=True)
class Scaled:
    """D = scale x a tensor: the bias that a LoRA layer adds (peft's `lora_bias`)."""

    tensor: str
    scale: float
    shape: Shape

    @property
    def tensors(self) -> tuple[str, ...]:
        """One."""
        return (self.tensor,)

    @property
    def strength(self) -> tuple[int, float]:
        """Its scale; it has no factors."""
        return 0, self.scale

    def fit(self, shape: Shape, turned: bool | None = None) -> "Scaled | None":
        """It fits its own shape."""
        return self if shape == self.shape else None

    def task_vector(self, read: Read, base: Base) -> Tensor:
        """Return D, float32."""
        return read(self.tensor).float() * self.scale


@dataclass(frozen=True)
class Both:
    """New values and a change on top: an embedding that peft stored whole because an adapter targets it."""

    whole: Whole
    change: Part

    @property
    def tensors(self) -> tuple[str, ...]:
        """Those of both."""
        return (*self.whole.tensors, *self.change.tensors)

    @property
    def strength(self) -> tuple[int, float]:
        """Those of the change."""
        return self.change.strength

    def fit(self, shape: Shape, turned: bool | None = None) -> "Both | None":
        """Both have to fit."""
        change = self.change.fit(shape, turned)
        return replace(self, change=change) if change and self.whole.fit(shape) else None

    def task_vector(self, read: Read, base: Base) -> Tensor:
        """Return the sum; what a formula needs of the base are the new values."""
        values = read(self.whole.tensor).float()
        change = self.change.task_vector(read, lambda: values)
        difference = values - base().float()
        return change.added_to(difference) if isinstance(change, LowRank) else difference + change
