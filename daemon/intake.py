"""The intake takes what a scan saw: it asks the history what is known, waits until files are quiet, and has them admitted.

At its end a checkpoint is ready, and has its place in the order; or it is refused, held or blocked, with its reasons.
"""

import logging
import time
from collections.abc import Iterable

from ..state.errors import NotPermitted, Unavailable
from ..state.history import History
from ..state.records import Checkpoint, Reason, Sighting
from .admission import Admission
from .readiness import seconds_to_wait

log = logging.getLogger(__name__)

STILL_OPEN = ("settling", "blocked", "vanished")


class Intake:
    """Turns sightings into rows of the history."""

    def __init__(self, admission: Admission, history: History, quiet: float) -> None:
        self.quiet = quiet  # seconds
        self.refused = 0  # so far
        self.waits: dict[int, str] = {}  # checkpoint -> what is waited for
        self.admission, self._checkpoints = admission, history.checkpoints
        self._seen: dict[str, tuple[str, float]] = {}  # place -> fingerprint, and since when (monotonic seconds)

    def see(self, sightings: Iterable[Sighting]) -> float | None:
        """Take all that a scan saw; returns after how many seconds something will be quiet, None if nothing settles."""
        waits, places = [], set()
        for sighting in sightings:
            places.add(sighting.place)
            if (wait := self.take(sighting)) is not None:
                waits.append(wait)
        self._note_vanished(places)
        return min(waits, default=None)

    def take(self, sighting: Sighting, *, now: bool = False) -> float | None:
        """Bring one sighting's row up to date; returns how many seconds it still settles, None if it does not.

        `now`: a person says that it is complete, so that its quiet is not waited for.
        """
        row = self.row_of(sighting)
        if row.state not in STILL_OPEN:
            return None
        wait = 0.0 if now else self._still_settles(row, sighting)
        if wait == 0.0:
            self._admit(row, sighting)
            return None
        return wait

    def row_of(self, sighting: Sighting) -> Checkpoint:
        """Return the row of a place: a new one if it is new, or if what was folded from there has changed since."""
        row = self._checkpoints.at(sighting.source, sighting.place)
        if row is None or (row.state == "folded" and row.fingerprint != sighting.fingerprint):
            return self._checkpoints.add(sighting)
        if row.fingerprint != sighting.fingerprint and row.state != "folding":
            return self._checkpoints.resight(row.id, sighting)
        return row

    def _still_settles(self, row: Checkpoint, sighting: Sighting) -> float | None:
        """Return the seconds until it is quiet; None if no clock ends the wait."""
        if sighting.unfinished:
            self._settle(row, f"{sighting.unfinished} to be finished")
            return None
        fingerprint, since = self._seen.get(sighting.place, ("", 0.0))
        if fingerprint != sighting.fingerprint:
            since = time.monotonic()
            self._seen[sighting.place] = (sighting.fingerprint, since)
        wait = seconds_to_wait(sighting, time.monotonic() - since, time.time_ns(), self.quiet)
        if wait > 0:
            self._settle(row, f"its files to stay unchanged for {self.quiet:g} s")
        return wait

    def _admit(self, row: Checkpoint, sighting: Sighting) -> None:
        """Read the headers, and record the verdict."""
        try:
            _, verdict = self.admission.examine(sighting)
        except NotPermitted as error:
            reason = Reason("cannot-read", str(error), "files that the daemon's user may read", error.hint)
            self._checkpoints.set_state(row.id, "blocked", reason)
            return
        except Unavailable as error:
            self._settle(row, str(error))
            return
        self.waits.pop(row.id, None)
        if verdict.decision == "admitted":
            self._checkpoints.make_ready(row.id)
            log.info("%s is ready", row.name)
        else:
            self._checkpoints.set_state(row.id, verdict.decision, *verdict.reasons)
            self.refused += verdict.decision == "refused"
            log.warning("%s is %s: %s", row.name, verdict.decision, "; ".join(map(str, verdict.reasons)))

    def _settle(self, row: Checkpoint, waits_for: str) -> None:
        if self.waits.get(row.id) != waits_for:
            log.info("%s waits for %s", row.name, waits_for.removeprefix("waits for "))
        self.waits[row.id] = waits_for.removeprefix("waits for ")
        if row.state != "settling":
            self._checkpoints.set_state(row.id, "settling")

    def _note_vanished(self, places: set[str]) -> None:
        """Record which places are gone; what a person asked for by its path may lie outside the watched folder."""
        for row in self._checkpoints.in_state("settling", "ready", "blocked"):
            if row.place not in places and row.urgent is None:
                self._checkpoints.set_state(row.id, "vanished")
                self._seen.pop(row.place, None)
                log.info("%s is gone from %s", row.name, row.place)
