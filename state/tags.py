"""Tags: the names that people gave to versions, which are kept for as long as they have them."""

from sqlite_utils import Database

from .clock import utc_now
from .records import Tag


class Tags:
    """Reads and writes the table `tags`."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def all(self) -> list[Tag]:
        """Return every tag, by name."""
        return [Tag(**row) for row in self._db.table("tags").rows_where(order_by="name")]

    def get(self, name: str) -> Tag | None:
        """Return one tag."""
        rows = list(self._db.table("tags").rows_where("name = ?", [name]))
        return Tag(**rows[0]) if rows else None

    def of(self, version: int) -> list[str]:
        """Return the tags of a version, by name."""
        return [row["name"] for row in self._db.table("tags").rows_where("version = ?", [version], order_by="name")]

    def put(self, name: str, version: int, who: str) -> None:
        """Give a version a name, which no other version has from then on."""
        row = {"name": name, "version": version, "who": who, "at": utc_now()}
        self._db.table("tags").upsert(row, pk="name")

    def remove(self, name: str) -> None:
        """Take a name away."""
        self._db.table("tags").delete(name)
