"""Task arithmetic: published = base + lambda x sum of task vectors. Source: arXiv 2212.04089, section 2."""

from dataclasses import dataclass
from math import isfinite
from typing import ClassVar

from ...state.records import Totals
from .interface import ReadsTaskSum


@dataclass(frozen=True)
class TaskArithmetic(ReadsTaskSum):
    """Reads the sum of the task vectors, times a constant."""

    source: ClassVar[str] = "arXiv 2212.04089, section 2"

    lambda_: float = 0.3  # written lambda in a configuration; 0.3 is the paper's for eight vision tasks

    def __post_init__(self) -> None:
        if not isfinite(self.lambda_):
            raise ValueError("lambda must be a finite number")

    def scale(self, totals: Totals) -> float:
        """Return lambda."""
        return self.lambda_
