"""Judging: what is to be said of a checkpoint whose content was read whole, before anything of it is published.

Pure: all that it needs of the past comes with the job.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import sqrt

from ..plugins.formats.interface import Candidate
from ..state.decided import Decisions, by_hand
from ..state.records import (
    ADMITTED,
    Checkpoint,
    Contribution,
    Drafted,
    Reason,
    Verdict,
)
from ..state.wording import decide, quoted
from .ancestry import Line
from .base import Base
from .folding import FoldResult
from .gating import Measured
from .opening import Merge
from .replacing import Start
from .sketch import cosines

Given = Counter[tuple[str, str]]  # how often a verdict was given, by the verdict and the code of a reason


@dataclass(frozen=True)
class Past:
    """What a newcomer is judged by, besides itself."""

    contributions: tuple[Contribution, ...] = ()  # of the parent's line, newest first
    last_day: int = 0  # folds of the last 24 hours
    decisions: Decisions = field(default_factory=Decisions)
    measured: Mapping[str, Measured] = field(default_factory=dict)  # by the programs that are gates, by their names


@dataclass(frozen=True)
class Job:
    """One attempt at a fold: all that drafting needs to know."""

    attempt: int
    checkpoint: Checkpoint
    candidate: Candidate
    number: int
    start: Start
    folded_here: frozenset[str]  # digests folded from this place before; empty if a person asked for this one too
    known: frozenset[str]  # digests that would be folded for nothing
    past: Past = Past()
    share: float = 1.0  # what the checkpoint counts
    doubt: Reason | None = None  # why that should be looked at by a person
    waited: float = 0.0  # seconds, since it was ready
    line: Line = field(default_factory=Line)  # that leads to its start, for the card

    @property
    def name(self) -> str:
        """What people call it."""
        return self.checkpoint.name


@dataclass(frozen=True)
class Known:
    """No draft: this content counts already."""

    digest: str


@dataclass(frozen=True)
class Turned:
    """No draft: this content was turned away, or is held."""

    verdict: Verdict
    digest: str | None = None  # None if its content was not read to its end


def seen_here(job: Job, digest: str, on_change: str) -> Known | Turned | None:
    """Return what is to be said of this content at a place from which something was folded before, if anything.

    on_change: the setting that says what other content there means.
    """
    if digest in job.folded_here:
        return Known(digest)
    if on_change in ("add", "replace"):
        return None
    return _unless_lifted(job, changed(job.checkpoint.place, on_change), digest)


def changed(place: str, on_change: str) -> Verdict:
    """Return what the setting says of other content at a place from which something was folded."""
    found = "other content than what was folded from this place before"
    next_step = decide(place) if on_change == "hold" else f"to fold it all the same: mergd fold {quoted(place)}"
    reason = Reason("changed", found, f"a new name for a new checkpoint (on_change = {on_change})", next_step)
    return Verdict("held" if on_change == "hold" else "refused", (reason,))


def held_at_start(job: Job) -> Turned | None:
    """Return why a person should look at it before its content is read.

    It cannot take the place of the one that it should replace: approved, it is one more. Or its sidecar says what nobody
    understands: approved, it counts what the settings say.
    """
    reasons = tuple(filter(None, (job.start.held, job.doubt)))
    return _unless_lifted(job, Verdict("held", reasons)) if reasons else None


def _unless_lifted(job: Job, verdict: Verdict, digest: str | None = None) -> Turned | None:
    verdict = job.past.decisions.lift(verdict, (digest or "", job.checkpoint.fingerprint))
    return None if verdict == ADMITTED else Turned(verdict, digest)


def judged(job: Job, result: FoldResult, merge: Merge) -> Drafted | Known | Turned:
    """Return what a user's gates are to see, or why it does not come to that."""
    if result.digest in job.known:
        return Known(result.digest)
    drafted = drafted_of(job, result, merge.base)
    contents, decisions = (result.digest, job.checkpoint.fingerprint), job.past.decisions
    refusal = decisions.refusal(contents)
    if refusal is not None and job.checkpoint.urgent is None:  # unless a person asks for it now
        return Turned(Verdict("refused", (by_hand(refusal, job.checkpoint.place),)), result.digest)
    verdict = decisions.lift(merge.sane.judge(drafted), contents)
    return drafted if verdict == ADMITTED else Turned(verdict, result.digest)


def drafted_of(job: Job, result: FoldResult, base: Base) -> Drafted:
    """Return what a gate sees of a fold before anything is published."""
    past, row, parent = job.past.contributions, job.checkpoint, job.start.parent
    return Drafted(
        version=job.number,
        parent=parent.number if parent else None,
        checkpoint=row.name,
        model=None,
        totals=result.totals,
        weights=result.reports,
        place=row.place,
        contributor=row.contributor,
        shapes={weight.name: weight for weight in base.weights},
        strength=_strength(job.candidate),
        parent_norm=parent.totals.readout_norm if parent else 0.0,
        past=past,
        cosines=cosines(result.sketch, [earlier.sketch for earlier in past]),
        last_day=job.past.last_day,
    )


def contribution_of(job: Job, result: FoldResult) -> Contribution:
    """Return what a fold brought, for those after it."""
    norm = sqrt(sum(report.task_norm**2 for report in result.reports.values()))
    return Contribution(job.number, job.checkpoint.name, job.checkpoint.contributor, norm, result.sketch)


def _strength(candidate: Candidate) -> tuple[int, float]:
    """Return the largest rank and the largest scale of an adapter's products, zeros for new values."""
    each = [part.strength for part in candidate.parts.values()]
    return max((rank for rank, _ in each), default=0), max((scale for _, scale in each), key=abs, default=0.0)


def known_content(row: Checkpoint, known: Checkpoint) -> Reason:
    """Return why there is nothing to fold: this content counts already, under its first name."""
    return Reason(
        "known-content",
        f"the content of {known.name} under the name {row.name}",
        "content that was not folded before",
        f"nothing; to have it back after a rollback: mergd fold --again {quoted(known.place)}",
    )
