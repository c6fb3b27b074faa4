"""What the rules that read entry by entry have in common: the slot itself, a constant factor, a share of the entries."""

from collections.abc import Mapping
from math import isfinite

from torch import Tensor

from ...state.records import Counts, Totals, Weight
from .interface import ReadOut, Slots, Statistic


class ReadsEntries(ReadOut):
    """A rule that reads one statistic entry by entry; a subclass says which, and writes `merged` if it has several slots."""

    @property
    def statistic(self) -> Statistic:
        """What it reads."""
        raise NotImplementedError

    def keeps(self, w: Weight) -> tuple[Statistic, ...]:
        """Return that, for every weight."""
        return (self.statistic,)

    def rowwise(self, w: Weight) -> bool:
        """Always: each entry is read by itself."""
        return True

    def merged(self, kept: Mapping[Statistic, Slots], w: Weight, counts: Counts) -> Tensor:
        """Return the only slot as it is."""
        (slot,) = kept[self.statistic].values()
        return slot


class TimesLambda(ReadOut):
    """A rule whose read-out is multiplied by its parameter lambda."""

    lambda_: float

    def scale(self, totals: Totals) -> float:
        """Return lambda."""
        return self.lambda_


def check_finite(name: str, value: float) -> None:
    """Raise ValueError, naming the parameter, unless it is a number."""
    if not isfinite(value):
        raise ValueError(f"{name} must be a finite number")


def check_density(density: float) -> None:
    """Raise ValueError unless it is a share of the entries that leaves any."""
    if not 0 < density <= 1:
        raise ValueError("density must be above 0 and at most 1")
