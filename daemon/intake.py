"""The intake takes what a scan saw: it asks the history what is known, waits until files are quiet, and has them admitted.

At its end a checkpoint is ready, and has its place in the order; or it is refused, held or blocked, with its reasons.
"""

import logging
import os
import sqlite3
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from ..plugins.formats.interface import Candidate
from ..plugins.sources.directory import evidence
from ..plugins.sources.interface import Remote
from ..state.errors import NotPermitted, Unavailable
from ..state.headers import owner_of
from ..state.history import History
from ..state.records import ADMITTED, Checkpoint, Reason, Sighting, Verdict
from ..state.wording import quoted
from . import runs
from .admission import Admission
from .base import Base
from .fetching import Fetching, record_known
from .hashing import Hasher
from .judging import Given
from .method import Method
from .readiness import Now, Patience, Readiness, Seen, seconds_to_wait, step
from .runs import FREE, Turn
from .settings import Settings

log = logging.getLogger(__name__)

STILL_OPEN = ("settling", "blocked", "vanished")
STUCK = timedelta(hours=24)
WIDEST, BESIDE = 4, 2**30  # a file of more than so many times the base model, and so many bytes, is never hashed


class Intake:
    """Turns sightings into rows of the history."""

    def __init__(
        self,
        base: Base,
        history: History,
        settings: Settings,
        wake: Callable[[], None] = lambda: None,
        method: Callable[[], Method | None] = lambda: None,
        remote: Remote | None = None,
    ) -> None:
        self.settings = settings
        self.refused = 0  # so far
        self.given = Given()  # by headers alone, in this life
        self.waits: dict[int, str] = {}  # checkpoint -> what is waited for
        self._base, self._history = base, history
        self._checkpoints, self._decided = history.checkpoints, history.decided
        self._method = method  # by which the next checkpoint is folded
        self._fetching = Fetching(remote, history, self._examine, self._on_change) if remote is not None else None
        self._hasher = Hasher(wake, WIDEST * base.layout.nbytes + BESIDE)
        self._places: dict[str, Readiness] = {}  # how far those are that still settle
        self._runs: dict[str, tuple[str, float]] = {}  # fingerprint, and since when (monotonic seconds)
        self._warned: set[int] = set()  # checkpoints that settle for too long
        self._failed: dict[str, str] = {}  # places that no rule here foresaw, and with what error

    @property
    def hashing(self) -> bool:
        """Whether a digest is still to come, after which there is more to take."""
        return self._hasher.busy

    def close(self) -> None:
        """Stop hashing."""
        self._hasher.close()

    def see(self, sightings: Sequence[Sighting], blind: Collection[str] = ()) -> float | None:
        """Take all that a scan saw, but for the sources that were blind; returns after how many seconds something will be quiet, None if nothing settles."""
        turns, refused = self._turns(sightings), self.refused
        waits = [self.take(s, turn=turns.get(s.place, FREE)) for s in self._in_order(sightings)]
        self._note_vanished({sighting.place for sighting in sightings}, blind)
        self._warn_of_stuck()
        if turns and self.refused > refused:
            return 0.0  # a step that waited for one that was refused has its turn now
        return min((wait for wait in waits if wait is not None), default=None)

    def _in_order(self, sightings: Sequence[Sighting]) -> Sequence[Sighting]:
        """Return what a person asked for first: where what comes from elsewhere has room, it is to be this."""
        urgent = {row.place: row.urgent for row in self._checkpoints.in_state("settling") if row.urgent is not None}
        last = max(urgent.values(), default=0) + 1
        return sorted(sightings, key=lambda sighting: urgent.get(sighting.place, last)) if urgent else sightings

    def take(self, sighting: Sighting, *, now: bool = False, turn: Turn = FREE) -> float | None:
        """Bring one sighting's row up to date; returns how many seconds it still settles, None if no clock ends that.

        `now`: a person says that it is complete, so that its quiet is not waited for. Whatever goes wrong with one place
        is told once, and it settles: the others are taken all the same.
        """
        row: Checkpoint | None = None
        try:
            row = self.row_of(sighting)
            seconds = self._bring_up_to_date(row, sighting, now, turn)
            self._failed.pop(sighting.place, None)
        except sqlite3.Error:  # the history's: that is nothing of one place
            raise
        except Exception as error:  # noqa: BLE001 - see above
            self._note_failed(row, sighting, error)
            return None
        return seconds

    def _bring_up_to_date(self, row: Checkpoint, sighting: Sighting, now: bool, turn: Turn) -> float | None:
        if row.state not in STILL_OPEN:
            self.leave(row)
            return None
        if turn.reason is not None and not self._is_approved(row, turn.reason):
            self._checkpoints.set_state(row.id, "held", turn.reason)
            return None
        if turn.waits_for:
            self._settle(row, turn.waits_for)
            return None
        if self._fetching is not None and self._is_remote(row):
            self._bring(self._fetching, row, sighting, turn, now)
            return None
        readiness = self._readiness(sighting, asked=now)
        if readiness.state == "blocked":
            path = readiness.waits_for
            self._block(row, f"cannot read {path} ({owner_of(path)})", _leave_to_read(path))
        elif readiness.state == "settling":
            self._settle(row, readiness.waits_for)
        else:
            self._admit(row, sighting, turn)
        return readiness.seconds

    def _bring(self, fetching: Fetching, row: Checkpoint, sighting: Sighting, turn: Turn, now: bool) -> None:
        """Bring what lies elsewhere here: its headers, by which it is judged, and then the rest."""
        try:
            found = fetching.take(row, sighting, asked=now)
        except NotPermitted as error:
            self._block(row, str(error), error.hint)
        except Unavailable as error:
            self._settle(row, str(error))
        else:
            if isinstance(found, Checkpoint):
                self._forget(row, row.place)
                record_known(row, found, self._history)
            else:
                self._record(row, sighting, turn, found)
            self.leave(self._checkpoints.get(row.id))

    def leave(self, row: Checkpoint) -> None:
        """Have deleted what was brought here of a checkpoint that is not to be folded any more."""
        if self._fetching is not None and self._is_remote(row) and row.state not in ("ready", "folding"):
            self._fetching.forget(row.place)  # its headers are no longer here either
            self._fetching.remote.leave(row.place)

    def _is_remote(self, row: Checkpoint) -> bool:
        return self._fetching is not None and row.source == self._fetching.remote.name

    def unfetched(self, rows: Collection[int] | None = None) -> str:
        """Return why what lies elsewhere is not here, if nothing brings it now; empty if all is. `rows`: of these alone."""
        if self._fetching is None or self._fetching.remote.busy:
            return ""
        settling = self._checkpoints.in_state("settling")
        lacking = [row for row in settling if self._is_remote(row) and (rows is None or row.id in rows)]
        return "; ".join(f"{row.name} waits for {self.waits.get(row.id, 'the Hub')}" for row in lacking)

    def row_of(self, sighting: Sighting) -> Checkpoint:
        """Return the row of a place: a new one if it is new, or if what was folded from there has changed since."""
        row = self._checkpoints.at(sighting.source, sighting.place)
        if row is None:
            return self._checkpoints.add(sighting)
        if row.public and not sighting.public:
            self._checkpoints.hide(sighting)  # whoever hides what they showed before may well mean it
            row = self._checkpoints.get(row.id)
        if row.fingerprint == sighting.fingerprint or row.state == "folding":
            return row
        if row.state != "folded":
            return self._checkpoints.resight(row.id, sighting)
        if not self._is_needless(row):
            return self._checkpoints.add(sighting)
        self._checkpoints.resight(row.id, sighting)
        return self._checkpoints.set_state(row.id, "settling", duplicate_of=None)

    def elsewhere(self, sightings: Iterable[Sighting]) -> list[str]:
        """Return the places that settle and that no scan sees, as a person named them by their path."""
        seen = {sighting.place for sighting in sightings}
        rows = self._checkpoints.in_state("settling", "blocked")
        return [row.place for row in rows if row.place not in seen and not self._is_gone(row)]

    def _is_needless(self, row: Checkpoint) -> bool:
        """Whether a row says only that a place was touched: no version came of it, and an earlier row has its content."""
        if row.duplicate_of is None or any(tried.outcome == "folded" for tried in self._checkpoints.attempts(row.id)):
            return False
        others = (other for other in self._checkpoints.under(row.source, row.place) if other.id < row.id)
        same = (row.place, row.digest, "folded")
        return any((other.place, other.digest, other.state) == same for other in others)

    def _is_approved(self, row: Checkpoint, reason: Reason) -> bool:
        contents = (row.digest or "", row.fingerprint)
        return self._decided.all().lift(Verdict("held", (reason,)), contents) == ADMITTED

    # ---------------------------------------------------------------------------------------------------- is it complete

    def _readiness(self, sighting: Sighting, asked: bool) -> Readiness:
        """Take the next step of a place's way to readiness.

        `asked`: a person says that it is complete. No time is waited for, nor any digest; who still writes is.
        """
        try:
            found = evidence.gather(sighting)
        except Unavailable as error:
            return Readiness("settling", str(error))
        hashed = {} if found.unfinished or found.writers else self._hasher.known(sighting, found.digests)
        settings, now = self.settings, Now(time.monotonic(), time.time_ns())
        patience = Patience(settings.quiet, settings.quiet_unsure, settings.quiet_network, settings.marked_only)
        if asked:
            found, patience = replace(found, manifest="", digests={}), Patience(0, 0, 0)
        readiness = step(self._places.get(sighting.place), Seen(sighting, found, hashed), now, patience)
        self._places[sighting.place] = readiness
        return readiness

    def _turns(self, sightings: Iterable[Sighting]) -> dict[str, Turn]:
        """Return the turn of each place that belongs to a trainer's run."""
        members: dict[tuple[str, str], list[Sighting]] = {}
        for sighting in sightings:
            if sighting.run:
                members.setdefault((sighting.source, sighting.run), []).append(sighting)
        turns: dict[str, Turn] = {}
        self._runs = {run: since for run, since in self._runs.items() if any(run == key[1] for key in members)}
        for (source, run), of_run in members.items():
            rows = self._checkpoints.under(source, run)
            turns |= runs.plan(of_run, rows, self.settings.per_run, self._quiet_of(run, of_run))
        return turns

    def _quiet_of(self, run: str, members: Sequence[Sighting]) -> str:
        """Return in words how long a run must still be quiet, empty once it was; the repeated scan finds that out."""
        fingerprint = " ".join(sighting.fingerprint for sighting in members)
        if self._runs.get(run, ("", 0.0))[0] != fingerprint:
            self._runs[run] = fingerprint, time.monotonic()
        seen_for, quiet = time.monotonic() - self._runs[run][1], self.settings.run_quiet
        changed_ns = max(sighting.changed_ns for sighting in members)
        return f"quiet for {quiet / 60:g} min" if seconds_to_wait(changed_ns, seen_for, time.time_ns(), quiet) else ""

    # ------------------------------------------------------------------------------------------------- what is recorded

    def _admit(self, row: Checkpoint, sighting: Sighting, turn: Turn) -> None:
        """Read the headers, and record the verdict."""
        try:
            _, verdict = self._examine(sighting)
        except NotPermitted as error:
            self._block(row, str(error), error.hint)
        except Unavailable as error:
            self._settle(row, str(error))
        else:
            self._record(row, sighting, turn, verdict)

    def _examine(self, sighting: Sighting) -> tuple[Candidate | None, Verdict]:
        return Admission(self._base, self.settings, self._method()).examine(sighting)

    def _on_change(self) -> str:
        return self.settings.on_change

    def _record(self, row: Checkpoint, sighting: Sighting, turn: Turn, verdict: Verdict) -> None:
        self._forget(row, sighting.place)
        if verdict.decision == "admitted":
            self._checkpoints.make_ready(row.id, replaces=self._replaced_by(sighting, turn))
            log.info("%s is ready", row.name, extra={"checkpoint": row.name})
        else:
            self._checkpoints.set_state(row.id, verdict.decision, *verdict.reasons)
            self.refused += verdict.decision == "refused"
            self.given.update((verdict.decision, code) for code in verdict.codes)
            about = {"checkpoint": row.name, "reason": verdict.codes}
            log.warning("%s is %s: %s", row.name, verdict.decision, "; ".join(map(str, verdict.reasons)), extra=about)

    def _replaced_by(self, sighting: Sighting, turn: Turn) -> int | None:
        """Return the row in whose stead a checkpoint counts: an earlier step of its run, or what its place held before."""
        if turn.replaces is not None or self.settings.on_change != "replace":
            return turn.replaces
        before = self._checkpoints.folded_at(sighting.source, sighting.place)
        return before.id if before else None

    def _block(self, row: Checkpoint, found: str, next_step: str) -> None:
        reason = Reason("cannot-read", found, "files that the daemon's user may read", next_step)
        if row.state != "blocked":
            about = {"checkpoint": row.name, "reason": reason.code}
            log.warning("%s is blocked: %s", row.name, reason, extra=about)
        self._checkpoints.set_state(row.id, "blocked", reason)

    def _settle(self, row: Checkpoint, waits_for: str) -> None:
        if self.waits.get(row.id) != waits_for:
            log.info("%s waits for %s", row.name, waits_for.removeprefix("waits for "))
        self.waits[row.id] = waits_for.removeprefix("waits for ")
        if row.state != "settling":
            self._checkpoints.set_state(row.id, "settling")

    def _note_vanished(self, places: set[str], blind: Collection[str]) -> None:
        """Record which places are gone; what a person asked for by its path may lie outside the watched folder."""
        for row in self._checkpoints.in_state("settling", "ready", "blocked"):
            asked = row.urgent is not None and not self._is_remote(row)
            if row.source not in blind and row.place not in places and not asked and self._is_gone(row):
                self.leave(self._checkpoints.set_state(row.id, "vanished"))
                self._forget(row, row.place)
                log.info("%s is gone from %s", row.name, row.place)

    def _is_gone(self, row: Checkpoint) -> bool:
        """Whether what no scan sees is gone: all that lies in the watched folder is seen."""
        watched = self.settings.watch is not None and Path(row.place).is_relative_to(self.settings.watch)
        return watched or not os.path.lexists(row.place)

    def _note_failed(self, row: Checkpoint | None, sighting: Sighting, error: Exception) -> None:
        words = f"{type(error).__name__}: {error}"
        if self._failed.get(sighting.place) != words:
            log.error("%s could not be looked at", sighting.name, exc_info=error)
        self._failed[sighting.place] = words
        if row is not None:
            self._settle(row, f"an end of this error, of which the log says more: {words}")

    def _forget(self, row: Checkpoint, place: str) -> None:
        self.waits.pop(row.id, None)
        self._places.pop(place, None)
        self._failed.pop(place, None)
        self._hasher.forget(place)
        if self._fetching is not None:
            self._fetching.forget(place)

    def _warn_of_stuck(self) -> None:
        """Tell once of what has been settling for a day; the steps of a run may well wait for longer."""
        for row in self._checkpoints.in_state("settling"):
            waits_for = self.waits.get(row.id, "")
            if row.id in self._warned or waits_for.startswith("nothing") or age(row) < STUCK:
                continue
            self._warned.add(row.id)
            log.warning("%s has been settling since %s; it waits for %s", row.name, row.since, waits_for)


def _leave_to_read(path: str) -> str:
    return f"chmod o+rX {quoted(path)}; or give the daemon its owner's user, or CAP_DAC_READ_SEARCH"


def age(row: Checkpoint) -> timedelta:
    """Return for how long a checkpoint has been in its state."""
    return datetime.now(UTC) - datetime.fromisoformat(row.since)
