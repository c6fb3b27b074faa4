"""The history's rows of what people decided on checkpoints: approved, refused, or retried."""

from collections.abc import Iterable

from sqlite_utils import Database

from .clock import utc_now
from .records import Checkpoint, Decision, Decisions


class Decided:
    """Reads and writes the table `decisions`."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def all(self) -> Decisions:
        """Return every decision, oldest first."""
        rows = self._db.query("select content, verdict, code, why, who, at from decisions order by id")
        return Decisions(tuple(Decision(**row) for row in rows))

    def approve(self, row: Checkpoint, who: str) -> None:
        """Write that the reasons for which a checkpoint is held are no reasons for this content."""
        self._write(Decision(content(row), "approved", reason.code, "", who, utc_now()) for reason in row.reasons)

    def refuse(self, row: Checkpoint, why: str, who: str) -> None:
        """Write that this content is refused by a person."""
        self._write([Decision(content(row), "refused", "", why, who, utc_now())])

    def retry(self, row: Checkpoint, who: str) -> None:
        """Write that a refusal of this content is taken back."""
        self._write([Decision(content(row), "retried", "", "", who, utc_now())])

    def _write(self, decisions: Iterable[Decision]) -> None:
        self._db.table("decisions").insert_all(vars(decision) for decision in decisions)


def content(row: Checkpoint) -> str:
    """Return what a decision on a checkpoint is about: its digest, or its files as they are while that is not known."""
    return row.digest or row.fingerprint
