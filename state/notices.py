"""Notices: what the hooks of the configuration are told, how far each of them is, and what could not be delivered."""

from secrets import token_hex
from typing import Any

from sqlite_utils import Database

from .clock import utc_now
from .database import transaction
from .records import Checkpoint, Move, Notice
from .wording import cut

KEPT = 1000  # notices that all hooks are past; and of what one missed
US = "mergd"  # who judges, where no person decided


class Notices:
    """Reads and writes the tables `notices`, `hooks` and `undelivered`."""

    def __init__(self, db: Database) -> None:
        self._db = db

    # ---------------------------------------------------------------------------------------------- what there is to tell

    def add_move(self, move: Move) -> None:
        """Write that the head moved: a part of the transaction that moves it."""
        query = "select digest from versions where number = ?"
        ((digest,),) = self._db.conn.execute(query, [move.to_version]).fetchall()
        self._add(move.why, move.from_version, move.to_version, move.who, move.why, "", digest, move.at)

    def add_verdict(self, row: Checkpoint, who: str = US) -> None:
        """Write that a checkpoint was refused or is held, if it is: a part of the transaction that writes its state."""
        if row.state in ("refused", "held"):
            why = cut("; ".join(map(str, row.reasons)))
            self._add(row.state, None, None, who, why, row.place, row.digest, row.since)

    def _add(self, kind: str, *rest: Any) -> None:
        names = ("from_version", "to_version", "who", "why", "path", "digest", "at")
        row = {"id": f"{kind}-{token_hex(12)}", "kind": kind, **dict(zip(names, rest, strict=True))}
        self._db.table("notices").insert(row)

    def next(self, hook: str) -> Notice | None:
        """Return what a hook is to be told now."""
        done = "(select done from hooks where name = ?)"
        rows = list(self._db.table("notices").rows_where(f"seq > {done}", [hook], order_by="seq", limit=1))
        return Notice(**rows[0]) if rows else None

    # -------------------------------------------------------------------------------------------------- who is told what

    def listen(self, *hooks: str) -> None:
        """Have these hooks told of what happens from now on, and no others; one that was there goes on where it was."""
        marks = ", ".join("?" * len(hooks))
        with transaction(self._db):
            for table, name in (("undelivered", "hook"), ("hooks", "name")):
                self._db.execute(f"delete from {table} where {name} not in ({marks})", hooks)  # noqa: S608
            for hook in hooks:
                query = "insert or ignore into hooks select ?, coalesce(max(seq), 0) from notices"
                self._db.execute(query, [hook])

    def told(self, hook: str, seq: int) -> None:
        """Write that a hook was told."""
        self._db.table("hooks").update(hook, {"done": seq})

    def give_up(self, hook: str, seq: int, why: str) -> None:
        """Write that a hook could not be told, and is not to be any more."""
        with transaction(self._db):
            row = {"hook": hook, "notice": seq, "why": cut(why), "at": utc_now()}
            self._db.table("undelivered").insert(row)
            self.told(hook, seq)

    def prune(self, keep: int = KEPT) -> None:
        """Let go of all but the newest notices that every hook is past, and of all but the newest that one missed."""
        with transaction(self._db):
            rank = "row_number() over (partition by hook order by notice desc)"
            old = f"select rowid from (select rowid, {rank} as place from undelivered) where place > ?"  # noqa: S608
            self._db.execute(f"delete from undelivered where rowid in ({old})", [keep])  # noqa: S608
            query = """delete from notices where seq <= (select max(seq) from notices) - ?
                and seq <= coalesce((select min(done) from hooks), seq)
                and seq not in (select notice from undelivered)"""
            self._db.execute(query, [keep])

    def standing(self) -> dict[str, dict[str, Any]]:
        """Return how far each hook is: up to which notice, how many it is owed, and what could not be delivered."""
        query = """select name, done, (select count(*) from notices where seq > done) as owed,
            (select count(*) from undelivered where hook = name) as undelivered from hooks order by name"""
        found = {row.pop("name"): row for row in list(self._db.query(query))}
        for hook, row in found.items():
            lost = self._db.table("undelivered").rows_where("hook = ?", [hook], order_by="notice desc", limit=1)
            row["last_undelivered"] = next(({key: one[key] for key in ("notice", "why", "at")} for one in lost), None)
        return found
