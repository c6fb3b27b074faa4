"""Ancestry: of which checkpoints a version was made, and by which causes besides folds; as far back as its card looks."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..plugins.sources.interface import SCHEME
from ..state.history import History
from ..state.records import Checkpoint, Version
from .replaying import share_of

MOST = 1000  # versions that are looked back at, and checkpoints that are listed: so a card costs no more than that
COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Line:
    """The newest versions of one line of ancestors, oldest first, back to a re-merge, and the rows that they name, by id."""

    versions: Sequence[Version] = ()
    rows: Mapping[int, Checkpoint] = field(default_factory=dict)

    def then(self, version: Version, *rows: Checkpoint | None) -> "Line":
        """Return this line with one more version, and the rows that it names."""
        if self.versions and self.versions[-1].number == version.number:
            return self
        return Line([*self.versions, version], {**self.rows, **{row.id: row for row in rows if row is not None}})

    def newest(self) -> "Line":
        """Return as much of it as a card looks back at."""
        if len(self.versions) <= MOST:
            return self
        versions = self.versions[-MOST:]
        return Line(versions, {row: self.rows[row] for version in versions for row in _named_by(version)})


def line_of(number: int | None, history: History) -> Line:
    """Return the line that leads to a version."""
    versions: list[Version] = []
    for version in history.lineage(number, MOST):
        versions.append(version)
        if version.cause == "re-merge":  # which says of itself what it merged
            break
    ids = {row for version in versions for row in _named_by(version)}
    return Line(versions[::-1], history.checkpoints.some(ids))


def _named_by(version: Version) -> list[int]:
    """Return the rows that a version names."""
    return [row for row in (version.checkpoint, version.removed, *_merged(version)) if row]


class Lines:
    """The lines of one merge. The last one is kept: the next fold mostly goes on where that one ended."""

    def __init__(self, history: History) -> None:
        self._history, self._last = history, Line()

    def to(self, number: int | None) -> Line:
        """Return the line that leads to a version, as `line_of` does."""
        self._last = self._from_last(number) or line_of(number, self._history)
        return self._last

    def _from_last(self, number: int | None) -> Line | None:
        version = self._history.version(number) if number is not None else None
        if version is None or version.cause == "re-merge" or not self._last.versions:
            return None
        last = self._last.versions[-1].number
        if version.number == last:
            return self._last
        rows = self._history.checkpoints.some(_named_by(version))
        return self._last.then(version, *rows.values()).newest() if version.parent == last else None


def made_of(line: Line) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the checkpoints that are in the newest version of a line, in their order, and the causes that are no folds.

    Both as plain values: nothing in them is of this machine.
    """
    inside: dict[int, dict[str, Any]] = {}
    others: list[dict[str, Any]] = []
    for version in line.versions[-MOST:]:
        if version.cause == "fold":
            if version.checkpoint is not None:  # else a rebuild could not find out which
                inside[version.checkpoint] = _folded(version, line)
            continue
        if version.cause == "re-merge":
            inside, others = _merged_anew(version, line), []  # from nothing: what was before does not count
        taken = inside.pop(version.removed, None) if version.removed is not None else None
        others.append(_other(version, line, taken))
    return list(inside.values())[-MOST:], others


def _merged(version: Version) -> list[int]:
    """Return the rows that a re-merge merged."""
    return list(version.arguments["folds"]) if version.cause == "re-merge" else []


def _folded(version: Version, line: Line) -> dict[str, Any]:
    after = {"scale": version.scale, "readout_norm": version.totals.readout_norm}
    return named(line.rows[version.checkpoint or 0]) | {"share": share_of(version), "version": version.number} | after


def _merged_anew(version: Version, line: Line) -> dict[int, dict[str, Any]]:
    shares = dict(zip(_merged(version), version.arguments["shares"], strict=True))
    return {row: named(line.rows[row]) | {"share": share, "version": version.number} for row, share in shares.items()}


def _other(version: Version, line: Line, taken: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return a cause that is no fold; of a removal, with what was taken out, and the version that folded it."""
    cause = {"version": version.number, "cause": version.cause, "scale": version.scale, "rule": version.rule}
    if version.removed is not None:
        gone = dict(taken or named(line.rows[version.removed]))
        return cause | {"how": version.arguments["how"], "removed": gone}
    left_out = {"left_out": list(version.arguments["left_out"])} if version.arguments.get("left_out") else {}
    return cause | {"method": dict(version.arguments.get("by") or version.method)} | left_out


def named(row: Checkpoint) -> dict[str, Any]:
    """Return what a card may say of a checkpoint: where it lies only if that is a repository, which others have too."""
    known: dict[str, Any] = {"name": row.name, "digest": row.digest}
    known |= {"licence": row.licence} if row.licence else {}
    if row.place.startswith(SCHEME):
        known["repository"] = row.place.removeprefix(SCHEME)
        if COMMIT.fullmatch(row.fingerprint):
            known["commit"] = row.fingerprint
    return known
