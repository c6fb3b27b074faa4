"""What a batch rule is: a merging method that must see all task vectors of a weight at once, for a re-merge only.

Such methods compare each task vector with the final whole, so that no statistic of constant size holds what they need.
Everything here is pure: no file, clock, log, thread or choice of device.
"""

from collections.abc import Sequence
from typing import Any, ClassVar, Protocol

from torch import Tensor

from ...state.records import Totals, Weight


class BatchRule(Protocol):
    """A merging method that reads all task vectors of one weight; a frozen dataclass whose fields are its parameters.

    A field whose name Python reserves ends in an underscore here, and not in a configuration.
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def source(self) -> str:
        """Where the method was published."""
        ...

    @property
    def needs_base(self) -> bool:
        """Whether `merge` reads theta0; others may be given anything in its place."""
        ...

    def merge(self, taus: Sequence[Tensor], w: Weight, shares: Sequence[float], theta0: Tensor) -> Tensor:
        """Return the merged task vector of one weight, in its shape and float32; what is given is left as it is.

        taus: the task vectors, one or more, each in the weight's shape, float32. shares: what each counts, above 0;
        2 means "as if it were there twice". theta0: the base model's weight.
        """
        ...

    def scale(self, totals: Totals) -> float:
        """Return the factor of the published task vector: published = base + scale x merged."""
        ...


class MergesAtOnce:
    """What most batch rules have in common; a subclass writes `merge`."""

    source: ClassVar[str] = ""
    needs_base: ClassVar[bool] = False

    def scale(self, totals: Totals) -> float:
        """Return 1: what is merged is what is published."""
        return 1.0


def is_batch(rule: object) -> bool:
    """Whether a rule, or its class, is a batch rule: it merges, where a fold rule keeps statistics and reads them."""
    return hasattr(rule, "merge") and not hasattr(rule, "keeps")
