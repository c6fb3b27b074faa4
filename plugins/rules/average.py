"""The running average: published = base + (sum of share x task vector) / (sum of shares).

Source: model soups, arXiv 2203.05482 (uniform soup); stochastic weight averaging, arXiv 1803.05407.
"""

from dataclasses import dataclass
from typing import ClassVar

from ...state.records import Totals
from .interface import ReadsTaskSum


@dataclass(frozen=True)
class Average(ReadsTaskSum):
    """Reads the mean of the task vectors; it has no parameters."""

    source: ClassVar[str] = "model soups, arXiv 2203.05482; stochastic weight averaging, arXiv 1803.05407"

    def scale(self, totals: Totals) -> float:
        """Return 1 / (sum of shares)."""
        return 1.0 / totals.shares if totals.shares else 1.0
