"""What the history knows of the versions' files: when they were last read whole, and what was not as it was written."""

import json
from collections.abc import Mapping, Sequence

from sqlite_utils import Database

from .clock import utc_now
from .wording import cut


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
