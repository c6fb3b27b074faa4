"""What a kind of model is: a base, tasks with heads that are fixed beforehand, and fine-tunes of the encoder alone."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor, nn

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Tuned:
    """One fine-tuning: the whole weights, what it says of their importance, and the adapter where one was trained."""

    weights: Weights  # of an adapter: the base with the adapter's product added
    fisher: Weights = field(default_factory=dict)  # the mean squared gradient of each entry; empty of an adapter
    adapter: Weights = field(
        default_factory=dict
    )  # PEFT's names: base_model.model.<module>.lora_A.weight (r, n), lora_B (m, r)
    adapter_config: Mapping[str, Any] = field(default_factory=dict)  # what adapter_config.json says


class Kind(Protocol):
    """A kind of encoder with its tasks. Nothing here keeps files: training.py does; all is told by the seeds."""

    name: str

    @property
    def config(self) -> Mapping[str, Any]:
        """What config.json of a model folder says."""
        ...

    def encoder(self) -> nn.Module:
        """Return the encoder whose state_dict has the weights' names, with any numbers."""
        ...

    def base(self, seed: int) -> Weights:
        """Return the pretrained encoder: trained from this seed, or the same for all."""
        ...

    def fine_tune(self, base: Weights, task: str, seed: int, *, adapter: bool = False, shuffled: bool = False) -> Tuned:
        """Train a copy of the base for one task, its head frozen; an adapter alone; or on labels that mean nothing."""
        ...

    def accuracy(self, base: Weights, weights: Weights, task: str, seed: int, most: int | None = None) -> float:
        """Return the percentage of the task's test items (of the first `most`) that the encoder gets right.

        The head is made by the base, and the split by the seed: both as they were when this task was trained.
        """
        ...
