"""Surveying: what must be known of a whole checkpoint before it is folded, in as many passes over it as that takes."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from ..plugins.rules.interface import NOTHING, LowRank, Slots, Survey
from ..state.records import Weight
from .base import COPIES, Base, float32_bytes, row_blocks
from .blocks import LARGEST, UNDER_WAY
from .forming import Forming
from .machine import Machine
from .method import NORM, Method
from .overlapping import Job, overlapped
from .progress import Progress

Work = Callable[[Weight, Tensor], dict[Survey, Slots]]
Pass = Callable[[Work], Iterator[dict[Survey, Slots]]]


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
    base: Base, open_vectors: Callable[[], Forming], method: Method, machine: Machine, progress: Progress
) -> Surveyed:
    """Return what a method must know of a checkpoint; `open_vectors` begins to form its task vectors once more."""

    def passing(unit: float) -> Pass:
        return lambda work: _in_one_pass(base, open_vectors(), Surveyed(unit), work, machine, progress)

    unit = 1.0
    if method.normalise:
        norm = float(survey_all((NORM,), passing(1.0))[NORM]["norm"])
        unit = 1.0 / norm if norm else 1.0
    return Surveyed(unit, survey_all(method.surveys(base.weights), passing(unit)))


def survey_all(surveys: Sequence[Survey], passing: Pass) -> dict[Survey, Slots]:
    """Return what each survey found; they share their passes. `passing` does some work on each block, in one pass."""
    found: dict[Survey, Slots] = dict.fromkeys(surveys, NOTHING)
    for number in range(max((survey.passes for survey in surveys), default=0)):
        due = [survey for survey in surveys if survey.passes > number]
        sums: dict[Survey, dict[str, Tensor]] = {survey: {} for survey in due}
        terms = partial(_terms, due, found)
        for each in passing(terms):
            for survey, term in each.items():
                for name, tensor in term.items():
                    sums[survey][name] = sums[survey][name] + tensor if name in sums[survey] else tensor
        found = found | {survey: survey.found(sums[survey], found[survey]) for survey in due}
    return found


def _terms(due: Sequence[Survey], found: Mapping[Survey, Slots], w: Weight, delta: Tensor) -> dict[Survey, Slots]:
    """Return what one block adds to each survey's sums."""
    return {survey: survey.term(delta, w, found[survey]) for survey in due}


def _in_one_pass(
    base: Base, vectors: Forming, scaled: Surveyed, work: Work, machine: Machine, progress: Progress
) -> Iterator[dict[Survey, Slots]]:
    """Yield what the work made of each block of the task vector, in order; it is done on several at once."""

    def load(job: Job) -> Callable[[], dict[Survey, Slots]]:
        with progress.busy("survey"):
            delta = scaled.scaled(vectors.block(job.weight, job.rows, torch.float32))
        return lambda: work(job.weight, delta.dense() if isinstance(delta, LowRank) else delta)

    progress.begin("surveying", len(base.weights), base.layout.nbytes)
    with overlapped(_jobs(base.weights, machine.memory), load, machine.memory, machine.threads) as made:
        for job, terms in made:
            yield terms
            if job.last:
                progress.advance(base.layout.tensors[job.weight.name].nbytes)
                progress.next_weight()


def _jobs(weights: Iterable[Weight], memory: int) -> Iterator[Job]:
    for w in weights:
        blocks = row_blocks(w.shape, float32_bytes(w.shape), min(memory // UNDER_WAY, LARGEST))
        for number, rows in enumerate(blocks, start=1):
            share = (rows[1] - rows[0]) / w.shape[0] if rows else 1.0
            yield Job(w, rows, int(COPIES * float32_bytes(w.shape) * share), last=number == len(blocks))
