"""Trainer runs: which steps of one training count, and for what the others wait. A pure plan.

Three points of one training must not become three votes by accident.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..plugins.sources.directory.places import FINAL, STEP
from ..state.records import Checkpoint, Reason, Sighting
from ..state.wording import decide

PerRun = Literal["last", "each", "replace"]
COUNTING = ("ready", "folding", "folded")  # states of what counts, or soon will


@dataclass(frozen=True)
class Turn:
    """What a checkpoint's run means for it."""

    waits_for: str = ""  # in words; empty if it may go on
    reason: Reason | None = None  # why it is held
    replaces: int | None = None  # the row of the step in whose stead it counts


FREE = Turn()


def plan(members: Sequence[Sighting], rows: Collection[Checkpoint], per_run: PerRun, quiet: str) -> dict[str, Turn]:
    """Return the turn of each place of one run; of one that is not named there, nothing is to be said.

    members: what a scan saw of the run. rows: what the history has of it, oldest first. quiet: in words, what its last step still
    waits for as the run may go on; empty once that is over.
    """
    members = [sighting for sighting in members if not _is_refused(sighting, rows)]
    if per_run == "each" or not members:
        return {}
    last = max(members, key=_rank)
    turn = _of_last(last, _counting(last, rows), per_run, quiet)
    return {sighting.place: turn if sighting is last else _superseded(last.name) for sighting in members}


def _of_last(last: Sighting, counting: Mapping[float, Checkpoint], per_run: PerRun, quiet: str) -> Turn:
    latest = max(counting, default=-1.0)
    if latest >= _rank(last):  # it was there, and is gone
        return _superseded(counting[latest].name)
    if per_run == "replace":
        return Turn(replaces=counting[latest].id) if counting else FREE
    if counting:
        return Turn(reason=_counted(last, counting[latest]))
    if quiet and last.step is not None:  # after the final model nothing comes
        return Turn(f"its run to be {quiet}; a later step counts instead")
    return FREE


def _superseded(later: str) -> Turn:
    return Turn(f"nothing: {later} of the same run counts instead")


def _is_refused(sighting: Sighting, rows: Iterable[Checkpoint]) -> bool:
    """Whether what lies at a place now was refused: then an earlier step counts in its stead."""
    newest = {row.place: row for row in rows}.get(sighting.place)
    return newest is not None and newest.state == "refused" and newest.fingerprint == sighting.fingerprint


def _rank(sighting: Sighting) -> float:
    """Return where in its run a sighting stands; the final model comes after every step."""
    return float("inf") if sighting.step is None else sighting.step


def _counting(sighting: Sighting, rows: Iterable[Checkpoint]) -> dict[float, Checkpoint]:
    """Return what else counts of a sighting's run, by its rank; a run's folder may hold other things too."""
    others = (row for row in rows if row.place != sighting.place and row.state in COUNTING)
    return {rank: row for row in others if (rank := _rank_of(row, sighting.run)) is not None}


def _rank_of(row: Checkpoint, run: str) -> float | None:
    name = Path(row.place).name
    if row.place == run or name == FINAL:
        return float("inf")
    step = STEP.fullmatch(name)
    return float(step[1]) if step else None


def _counted(sighting: Sighting, row: Checkpoint) -> Reason:
    return Reason(
        "run-counted",
        f"{sighting.name}, later than {row.name} of the same run",
        "one checkpoint of a run (per_run = last)",
        decide(sighting.place),
    )
