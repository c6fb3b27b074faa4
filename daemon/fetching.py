"""What lies elsewhere is judged by its headers before its weights are asked for; then it is brought here."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..plugins.formats.interface import Candidate
from ..plugins.sources.interface import Remote, shows_change
from ..state.errors import Busy, Refused
from ..state.history import History
from ..state.records import ADMITTED, Checkpoint, Reason, Sighting, Verdict
from .judging import changed, known_content

log = logging.getLogger(__name__)

Examine = Callable[[Sighting], tuple[Candidate | None, Verdict]]


class Fetching:
    """Takes the checkpoints of one source that is elsewhere as far as they can be judged."""

    def __init__(self, remote: Remote, history: History, examine: Examine, on_change: Callable[[], str]) -> None:
        """`on_change`: gives the setting, as it is at the moment."""
        self.remote = remote
        self._checkpoints, self._decided = history.checkpoints, history.decided
        self._examine, self._on_change = examine, on_change
        self._fitting: dict[str, str] = {}  # place -> revision, of which the headers fit and the rest is to come

    def take(self, row: Checkpoint, sighting: Sighting, *, asked: bool) -> Verdict | Checkpoint:
        """Return the verdict, or the row that has the same content; of what is admitted, all is here.

        asked: a person asks for it now. Raises Unavailable, saying what is waited for, and NotPermitted.
        """
        asked = asked or row.urgent is not None
        if self._fitting.get(row.place) != sighting.revision:
            found = self._judge(row, sighting, asked)
            if found != ADMITTED:
                return found
            self._fitting[row.place] = sighting.revision
        self.remote.content(sighting, row.urgent)
        return ADMITTED

    def forget(self, place: str) -> None:
        """Judge what lies at a place anew, if it is taken once more."""
        self._fitting.pop(place, None)

    def _judge(self, row: Checkpoint, sighting: Sighting, asked: bool) -> Verdict | Checkpoint:
        candidate, verdict = self._by_headers(row, sighting)
        if candidate is None or verdict != ADMITTED:
            self.remote.confirm(sighting)
            return verdict
        told = self.remote.choose(sighting, files_of(candidate)).files
        if not asked and (known := self._known(row, told)) is not None:
            return known
        self._checkpoints.set_state(row.id, row.state, files=told)
        return ADMITTED if asked else self._if_changed(row, told)

    def _by_headers(self, row: Checkpoint, sighting: Sighting) -> tuple[Candidate | None, Verdict]:
        """Return what the headers are judged to be. What a folder would wait for does not come at this revision."""
        try:
            return self._examine(self.remote.headers(sighting, row.urgent))
        except Refused as refusal:
            return None, Verdict("refused", refusal.reasons)
        except Busy as error:
            found = f"that it lacks {str(error).removeprefix('waits for ')}"
            reason = Reason(
                "incomplete", found, "all of its files in one commit", "push what it lacks, as a new commit"
            )
            return None, Verdict("refused", (reason,))

    def _known(self, row: Checkpoint, told: str) -> Checkpoint | None:
        """Return the row whose files were folded, and held the same: nothing of this one is brought then."""
        before = self._checkpoints.folded_at(row.source, row.place)
        if self._on_change() == "replace" and before is not None and before.files != told:
            return None  # what it was before counts again, in the stead of what it was since
        return self._checkpoints.of_files(told)

    def _if_changed(self, row: Checkpoint, told: str) -> Verdict:
        """Return what `on_change` says where it is plain already that nothing folded from this place had these weights."""
        on_change = self._on_change()
        folded = [r for r in self._checkpoints.placed(row.place) if r.state == "folded" and r.source == row.source]
        if on_change not in ("hold", "ignore") or not folded:
            return ADMITTED
        if not all(shows_change(before.files, told) for before in folded):
            return ADMITTED
        return self._decided.all().lift(changed(row.place, on_change), (row.digest or "", row.fingerprint))


def record_known(row: Checkpoint, known: Checkpoint, history: History) -> Checkpoint:
    """Record that what lies elsewhere holds the files of what was folded already."""
    log.info("%s holds the files of %s: nothing to fold", row.name, known.name)
    more: dict[str, Any] = {"digest": known.digest, "duplicate_of": known.id, "files": known.files}
    return history.checkpoints.set_state(row.id, "folded", known_content(row, known), **more)


def files_of(candidate: Candidate) -> set[str]:
    """Return the names of the files that a fold of a candidate reads."""
    layouts = [candidate.contents.layout, *(shipped.layout for shipped in candidate.shipped.values())]
    return {Path(file).name for layout in layouts for file in layout.files}
