"""What a batch reference is given: all checkpoints at once. References import nothing of mergd."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

Tensors = Mapping[str, Tensor]  # by weight name


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints that a merging method merges; `merge(given, **parameters)` returns the published task vectors."""

    taus: Sequence[Tensors]  # one task vector per checkpoint, float64
    kinds: Mapping[str, str]  # "matrix" (m, n) or a batch (..., m, n), "convolution" (m, ...), "lookup" or "other"
    shares: Sequence[float] = ()  # what each checkpoint counts; empty: 1. A share of 2 is as if it were there twice
    seeds: Sequence[Mapping[str, int]] = ()  # of each checkpoint, of each weight
    extras: Sequence[Mapping[str, Tensors]] = ()  # of each checkpoint, what was shipped beside it: "fisher" -> tensors
    base: Tensors = field(default_factory=dict)  # the base model's weights

    @property
    def counted(self) -> tuple[float, ...]:
        """The shares, one per checkpoint."""
        return tuple(self.shares) or (1.0,) * len(self.taus)
