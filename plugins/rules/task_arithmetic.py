"""Task arithmetic: published = base + lambda x sum of task vectors. Source: arXiv 2212.04089, section 2."""

from dataclasses import dataclass
from typing import ClassVar

from ._reading import TimesLambda, check_finite
from .interface import ReadsTaskSum


@dataclass(frozen=True)
class TaskArithmetic(TimesLambda, ReadsTaskSum):
    """Reads the sum of the task vectors, times a constant."""

    source: ClassVar[str] = "arXiv 2212.04089, section 2"

    lambda_: float = 0.3  # written lambda in a configuration; 0.3 is the paper's for eight vision tasks

    def __post_init__(self) -> None:
        check_finite("lambda", self.lambda_)
