"""Surveying: what must be known of a whole checkpoint before it is folded, in as many passes over it as that takes."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..plugins.rules.interface import NOTHING, LowRank, Slots, Survey
from ..state.records import Weight
from .base import Base, float32_bytes, row_blocks
from .forming import Forming
from .method import NORM, Method
from .progress import Progress


@dataclass(frozen=True)
class Surveyed:
    """What was found out."""

    unit: float = 1.0  # what each task vector is multiplied by before it is folded
    whole: Mapping[Survey, Slots] = field(default_factory=dict)

    def scaled(self, delta: Tensor | LowRank) -> Tensor | LowRank:
        """Return a task vector as it is folded."""
        if self.unit == 1.0:
            return delta
        return delta.times(self.unit) if isinstance(delta, LowRank) else delta * self.unit


def survey(
    base: Base, open_vectors: Callable[[], Forming], method: Method, memory: int, progress: Progress
) -> Surveyed:
    """Return what a method must know of a checkpoint; `open_vectors` begins to form its task vectors once more."""

    def blocks(unit: float) -> Iterator[tuple[Weight, Tensor]]:
        vectors, scaled = open_vectors(), Surveyed(unit)
        progress.begin("surveying", len(base.weights), base.layout.nbytes)
        for w in base.weights:
            for _, given in vectors.of(w, row_blocks(w.shape, float32_bytes(w.shape), memory), torch.float32):
                delta = scaled.scaled(given)
                yield w, delta.dense() if isinstance(delta, LowRank) else delta
            progress.advance(base.layout.tensors[w.name].nbytes)
            progress.next_weight()

    unit = 1.0
    if method.normalise:
        norm = float(survey_all((NORM,), lambda: blocks(1.0))[NORM]["norm"])
        unit = 1.0 / norm if norm else 1.0
    return Surveyed(unit, survey_all(method.surveys(base.weights), lambda: blocks(unit)))


def survey_all(surveys: Sequence[Survey], blocks: Callable[[], Iterator[tuple[Weight, Tensor]]]) -> dict[Survey, Slots]:
    """Return what each survey found; they share their passes. `blocks` begins another pass over all weights."""
    found: dict[Survey, Slots] = dict.fromkeys(surveys, NOTHING)
    for number in range(max((survey.passes for survey in surveys), default=0)):
        due = [survey for survey in surveys if survey.passes > number]
        sums: dict[Survey, dict[str, Tensor]] = {survey: {} for survey in due}
        for w, delta in blocks():
            for survey, summed in sums.items():
                for name, term in survey.term(delta, w, found[survey]).items():
                    summed[name] = summed[name] + term if name in summed else term
        found |= {survey: survey.found(sums[survey], found[survey]) for survey in due}
    return found
