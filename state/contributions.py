"""The history's rows of what each fold brought: norm and sketch of its task vector, and who it counts for."""

from base64 import b64decode, b64encode
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from sqlite_utils import Database

from .clock import utc_before
from .database import IN_MODEL
from .records import Contribution


class Contributions:
    """Reads and writes the table `contributions`."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def add(self, contribution: Contribution) -> None:
        """Record what the fold that made a version brought."""
        row = {name: getattr(contribution, name) for name in ("version", "contributor", "norm", "sketch")}
        self._db.table("contributions").insert(row)

    def of(self, number: int) -> Contribution | None:
        """Return what the fold that made a version brought."""
        query = """select contributions.version, name as checkpoint, contributor, norm, sketch from contributions
            join versions on number = version join checkpoints on checkpoints.id = checkpoint where number = ?"""
        rows = list(self._db.query(query, [number]))
        return Contribution(**rows[0]) if rows else None

    def in_line(self, number: int | None, last: int) -> tuple[Contribution, ...]:
        """Return what the newest folds brought that are in the model at a version, newest first, `last` at most."""
        query = f"""{IN_MODEL} select version, name as checkpoint, contributor, norm, sketch from model
            join contributions on version = n
            join checkpoints on checkpoints.id = model.checkpoint order by version desc limit ?"""  # noqa: S608
        return tuple(Contribution(**row) for row in self._db.query(query, [number, last]))

    def count_since(self, age: timedelta) -> int:
        """Return how many folds of the last so many hours there are, also of those that were rolled away."""
        query = "select count(*) from versions where cause = 'fold' and created_at > ?"
        (count,) = self._db.conn.execute(query, [utc_before(age)]).fetchone()
        return int(count)


def as_text(brought: Contribution) -> dict[str, Any]:
    """Return a contribution as a manifest has it, which has the version and the checkpoint elsewhere."""
    sketch = b64encode(brought.sketch).decode()
    return {"contributor": brought.contributor, "norm": brought.norm, "sketch": sketch}


def from_text(text: Mapping[str, Any], version: int, checkpoint: str) -> Contribution:
    """Return what a manifest says of a contribution."""
    return Contribution(version, checkpoint, text["contributor"], text["norm"], b64decode(text["sketch"]))
