"""Pinning: what a replay will need of a checkpoint, and where it is found again: in the archive, or where it lay."""

import logging
import shutil
from collections.abc import Collection
from itertools import chain
from typing import TYPE_CHECKING

from ..plugins.sources.directory import Directory  # of a merge that watches no folder too
from ..plugins.sources.interface import SCHEME, Sight
from ..state.archive import Archive, Pinned, copy_source, is_unchanged
from ..state.checkpoints import Checkpoints
from ..state.errors import MergdError
from ..state.records import Checkpoint, Sighting
from ..state.store import Draft
from .progress import Progress
from .settings_tables import ArchiveSettings

if TYPE_CHECKING:  # who only looks for a source needs no torch
    from ..plugins.formats.interface import Candidate

log = logging.getLogger(__name__)


def pin(candidate: "Candidate", draft: Draft, settings: ArchiveSettings, progress: Progress) -> None:
    """Copy a checkpoint that was just folded into its draft, if the settings want it kept."""
    if not wanted(candidate, settings):
        return
    nbytes, place = _nbytes(candidate), candidate.here
    progress.begin("archiving", 0, nbytes)
    for done in copy_source(place, candidate.stamps, draft, candidate.feed):
        progress.advance(done)
    if not is_unchanged(place, candidate.stamps):
        log.warning("%s changed after it was folded: it is not archived", candidate.name)
        shutil.rmtree(draft.source)
    progress.end()


def wanted(candidate: "Candidate", settings: ArchiveSettings) -> bool:
    """Whether a checkpoint is to be archived; one that alone is more than the budget is not."""
    if candidate.contents.partial:
        return settings.adapters
    return 0 < _nbytes(candidate) <= settings.full


def _nbytes(candidate: "Candidate") -> int:
    return sum(max(stamp.size, 0) for stamp in candidate.stamps)


def still_pinned(entries: Collection[Pinned], budget: int) -> list[str]:
    """Return the digests of what stays: every adapter, and the newest full models within the budget, oldest first.

    entries: oldest first.
    """
    left, stays = budget, list[str]()
    for pinned in reversed(list(entries)):
        left -= 0 if pinned.adapter else pinned.nbytes
        if pinned.adapter or left >= 0:
            stays.insert(0, pinned.digest)
    return stays


class Sources:
    """Where the content of a checkpoint that was folded can be read again."""

    def __init__(self, archive: Archive, checkpoints: Checkpoints, sight: Sight) -> None:
        self._archive, self._checkpoints, self._sight = archive, checkpoints, sight
        self.lost: dict[tuple[str, str], MergdError] = {}  # place and revision that are not given any more, and why

    def find(self, row: Checkpoint) -> Sighting | None:
        """Return the sighting of a row's content, None if it is gone: at a place where it was seen, or pinned.

        What nobody touched since goes before what is pinned, and that before what has files of the same names and sizes.
        The digest is compared when it is read.
        """
        found = [(other.fingerprint, self._sight(other.place)) for other in self._places(row)]
        seen = [(fingerprint, sighting) for fingerprint, sighting in found if sighting and sighting.lies_here]
        untouched = (sighting for fingerprint, sighting in seen if sighting.fingerprint == fingerprint)
        pinned = self._archive.place(row.digest)
        copies = (self._sight(str(place)) or Directory(place.parent).sight(place) for place in filter(None, [pinned]))
        alike = (sighting for fingerprint, sighting in seen if _alike(fingerprint, sighting))
        return next(filter(None, chain(untouched, copies, alike)), None)

    def elsewhere(self, row: Checkpoint) -> Sighting | None:
        """Return the sighting of a row's content on the Hub, from where it can be fetched again; None if nowhere.

        It is pinned to the commit that was folded. Nobody is asked whether it is still there.
        """
        rows = (other for other in self._places(row) if other.place.startswith(SCHEME) and other.fingerprint)
        there = (other for other in rows if (other.place, other.fingerprint) not in self.lost)
        return next(
            (Sighting(o.source, o.place, o.name, (), revision=o.fingerprint, public=o.public) for o in there), None
        )

    def why_lost(self, row: Checkpoint) -> MergdError | None:
        """Return what was answered where a row's content lay elsewhere, if it is not given any more."""
        rows = ((other.place, other.fingerprint) for other in self._places(row))
        return next((self.lost[key] for key in rows if key in self.lost), None)

    def _places(self, row: Checkpoint) -> list[Checkpoint]:
        """Return the rows of a row's content, itself first."""
        same = self._checkpoints.of_content(row.digest) if row.digest else []
        return [row, *(other for other in same if other.id != row.id)]


def _alike(fingerprint: str, sighting: Sighting) -> bool:
    """Whether files have the names and sizes that they had, as far as that is known: after a rebuild it is not."""
    return not fingerprint or (_sizes(fingerprint) == _sizes(sighting.fingerprint) and not sighting.revision)


def _sizes(fingerprint: str) -> list[list[str]]:
    """Return names and sizes of a fingerprint's files: `name:device:inode:size:mtime:ctime`."""
    parts = (file.rsplit(":", 5) for file in fingerprint.split(";") if file)
    return [[part[0], part[3]] for part in parts if len(part) == 6]
