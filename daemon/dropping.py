"""Dropping: has retention decide, says what it decided with the bytes, and lets go of what nothing keeps."""

import logging
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from ..state.committing import Commit
from ..state.history import History
from ..state.store import Store, disk_bytes
from .retention import PARTS, Fate, Keep, pieces, plan

log = logging.getLogger(__name__)


def decide(history: History, keep: Keep) -> list[Fate]:
    """Return what keeps each version that has files, at this moment, newest first."""
    moves = history.moves_that_keep(keep.last)
    return plan(history.with_files(), moves, history.tags.all(), keep, datetime.now(UTC))


def drop(fates: Sequence[Fate], commit: Commit) -> None:
    """Let go of what nothing keeps; the rows stay."""
    for number, part in pieces(fates):
        commit.sweep(number, part)
        log.info("the %s of v%d: dropped, nothing keeps it", part, number)


def collect(history: History, store: Store, keep: Keep) -> dict[str, Any]:
    """Drop what retention lets go now; returns what there was, what was kept and why, and the bytes that were freed."""
    fates = decide(history, keep)
    answer = describe(fates, store)
    drop(fates, Commit(store, history))
    return answer | {"used": store.used(version.number for version in history.with_files())}


def describe(fates: Sequence[Fate], store: Store) -> dict[str, Any]:
    """Return a plan as scripts see it: each part that is there, its bytes, and why it is kept; without a reason, it goes.

    What several versions share is counted for each of them, and freed only with the last.
    """
    going = [path for number, part in pieces(fates) for path in store.files(number, part)]
    return {
        "freed": disk_bytes(going, alone=True),
        "versions": [{"version": fate.version.number} | _parts(fate, store) for fate in fates],
    }


def _parts(fate: Fate, store: Store) -> dict[str, Any]:
    return {
        part: {
            "bytes": disk_bytes(store.files(fate.version.number, part)),
            "kept_for": list(fate.kept_for(part)),
        }
        for part in PARTS
        if fate.version.keeps(part)
    }
