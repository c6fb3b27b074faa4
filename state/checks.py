"""What the history knows of the versions' files: when they were last read whole, and what was not as it was written."""

import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path

from sqlite_utils import Database

from .clock import utc_now
from .database import open_reader
from .wording import cut

FAULTS = 20  # of the database, at most


class Checks:
    """Writes the columns of `versions` that say so."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def sound(self, number: int, stamps: Mapping[str, tuple[int, int]]) -> None:
        """Write that all files of a version were read and are as its manifest says, with their sizes and times by then."""
        row = {"checked_at": utc_now(), "damaged": None, "stamps": json.dumps(dict(stamps))}
        self._db.table("versions").update(number, row)

    def damaged(self, number: int, files: Sequence[str]) -> None:
        """Write which files of a version are not as they were written, besides those that were found before."""
        (before,) = self._db.conn.execute("select damaged from versions where number = ?", [number]).fetchone()
        found = dict.fromkeys([*(before.split(", ") if before else ()), *files])
        self._db.table("versions").update(number, {"damaged": cut(", ".join(found))})


def database_faults(path: Path) -> list[str]:
    """Return what SQLite finds wrong in a database, by a connection of its own that writes nothing."""
    try:
        with closing(open_reader(path)) as db:
            return list(_faults(db))
    except sqlite3.DatabaseError as error:
        return [str(error)]


def _faults(db: Database) -> Iterator[str]:
    for (line,) in db.conn.execute(f"PRAGMA integrity_check({FAULTS})"):
        if line != "ok":
            yield line
    for table, row, other, _ in db.conn.execute("PRAGMA foreign_key_check").fetchmany(FAULTS):
        yield f"row {row} of {table} leads to no row of {other}"
