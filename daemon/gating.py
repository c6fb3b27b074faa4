"""Gating: the user's programs measure a drafted model, and the numbers are held against the head's and the best on the way.

It runs on the folding thread. What was measured is a fact about one content: it is put down for the thread that writes the
history, whatever becomes of the draft, and never measured again.
"""

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from ..plugins.gates.program import Model, Program
from ..plugins.gates.tolerance import best_of
from ..state.clock import utc_now
from ..state.errors import Abandoned
from ..state.records import ADMITTED, Evaluation, Metrics, Reason, Verdict
from .progress import Progress

log = logging.getLogger(__name__)

DRAFT = "the draft"
SHOWN = 5  # metrics in a line of the log


@dataclass(frozen=True)
class Measured:
    """A gate that is a program, and what it measured before a draft is begun."""

    program: Program
    identity: str  # of what measures now
    known: Callable[[str], Metrics | None] = lambda digest: None  # what it measured of a model, by its digest
    best: Metrics = field(default_factory=dict)  # of each metric, on the way to the head
    from_base: bool = False  # whether the way begins at the base model, that it never measured


@dataclass(frozen=True)
class Models:
    """What is measured for one draft."""

    base: Model
    head: Model | None  # None before there is a version
    draft: Model


class Gating:
    """The programs' part in the drafts of one merge."""

    def __init__(self) -> None:
        self.measured: deque[Evaluation] = deque()  # to be written; from the folding thread to the one that writes

    def judge(self, gates: Mapping[str, Measured], models: Models, progress: Progress) -> Verdict:
        """Return the first refusal, or all reasons to hold that every gate has: a person sees them at once."""
        reasons: list[Reason] = []
        for name, gate in gates.items():
            verdict = self._ask(gate, models, progress)
            if verdict != ADMITTED and not gate.program.enforces:
                log.warning("gate %s only observes; else %s: %s", name, verdict.decision, _words(verdict.reasons))
            elif verdict.decision == "refused":
                return verdict
            else:
                reasons += verdict.reasons
        return Verdict("held", tuple(reasons)) if reasons else ADMITTED

    def _ask(self, gate: Measured, models: Models, progress: Progress) -> Verdict:
        """Measure the base and the head, if that was never done, and then the draft."""
        program = gate.program
        found: dict[str, Metrics] = {}
        head = models.head or models.base
        for model in (models.base, head, models.draft):
            outcome = found.get(model.digest) or gate.known(model.digest) or self._measure(gate, model, progress)
            if isinstance(outcome, Verdict):
                return outcome if model is models.draft else program.failed(model, _words(outcome.reasons))
            found[model.digest] = outcome
        first = [found[models.base.digest]] if gate.from_base else []
        best = best_of([*first, gate.best, found[head.digest]])
        place, draft = models.draft.place, found[models.draft.digest]
        return program.tolerance.judge(draft, found[head.digest], best, program.name, place)

    def _measure(self, gate: Measured, model: Model, progress: Progress) -> Metrics | Verdict:
        program = gate.program
        began, on = time.monotonic(), "" if model.words == DRAFT else f" on {model.words}"
        with progress.waiting(f"gate {program.name}{on}", program.deadline):
            outcome = program.measure(model, progress.abandon.is_set)
        if isinstance(outcome, Verdict):
            if progress.abandon.is_set():
                raise Abandoned
            return outcome
        took = round(time.monotonic() - began, 3)
        log.info("gate %s measured %s in %.0f s: %s", program.name, model.words, took, in_words(outcome))
        self.measured.append(Evaluation(model.digest, program.name, gate.identity, outcome, took, utc_now()))
        return outcome


def _words(reasons: Sequence[Reason]) -> str:
    return "; ".join(reason.found for reason in reasons)


def in_words(metrics: Metrics) -> str:
    """Return metrics as a line has them."""
    return ", ".join(_some(metrics))


def _some(metrics: Metrics) -> Iterator[str]:
    for name, metric in list(metrics.items())[:SHOWN]:
        yield f"{name} {metric.value:.6g}"
    if len(metrics) > SHOWN:
        yield f"{len(metrics) - SHOWN} more"
