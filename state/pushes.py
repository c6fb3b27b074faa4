"""Pushes: which version was pushed for which move of the head, to which repository, and as which commit."""

from sqlite_utils import Database

from .clock import utc_now
from .records import Pushed


class Pushes:
    """Reads and writes the table `pushes`."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def of_move(self, move: int, repository: str) -> Pushed | None:
        """Return what was pushed to a repository for a move."""
        return self._first("move = ? and repository = ?", move, repository)

    def first_of(self, version: int, repository: str) -> Pushed | None:
        """Return the push by which a repository first held a version."""
        return self._first("version = ? and repository = ? order by move", version, repository)

    def last(self, repository: str | None = None) -> Pushed | None:
        """Return the newest push, or the newest to a repository."""
        return self._first("repository = ? or ? is null order by rowid desc", repository, repository)

    def commits(self, version: int) -> dict[str, str]:
        """Return the commit by which each repository first held a version."""
        rows = self._db.table("pushes").rows_where("version = ?", [version], order_by="move desc")
        return {row["repository"]: row["commit"] for row in rows}

    def add(self, move: int, version: int, repository: str, commit: str) -> None:
        """Write that a version was pushed."""
        row = {"move": move, "version": version, "repository": repository, "commit": commit, "at": utc_now()}
        self._db.table("pushes").insert(row)

    def _first(self, condition: str, *values: object) -> Pushed | None:
        rows = list(self._db.table("pushes").rows_where(condition, values, limit=1))
        return Pushed(**rows[0]) if rows else None
