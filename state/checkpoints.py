"""The history's rows of checkpoints: where each was seen, its state and reasons, its place in the queue, each attempt."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from sqlite_utils import Database

from .clock import utc_now
from .database import inserted, transaction
from .notices import US, Notices
from .records import Attempt, Checkpoint, CheckpointState, Reason, Sighting
from .wording import cut

EXISTING = "existing"  # the code of what lay in the watched folder before anything was folded


class Checkpoints:
    """Reads and writes the tables `checkpoints` and `attempts`."""

    def __init__(self, db: Database) -> None:
        self._db, self._notices = db, Notices(db)

    # ------------------------------------------------------------------------------------------------------- reading

    def all(self) -> list[Checkpoint]:
        """Return every row, in the order in which they were first seen."""
        return self._where("1 order by id")

    def get(self, number: int) -> Checkpoint:
        """Return one row."""
        return self._where("id = ?", number)[0]

    def some(self, numbers: Iterable[int]) -> dict[int, Checkpoint]:
        """Return the rows of these ids, by id."""
        rows = self._where("id in (select value from json_each(?))", json.dumps(sorted(numbers)))
        return {row.id: row for row in rows}

    def has(self, number: int) -> bool:
        """Whether there is a row of this id."""
        return bool(self._where("id = ?", number))

    def at(self, source: str, place: str) -> Checkpoint | None:
        """Return the newest row of a place."""
        rows = self._where("source = ? and place = ? order by id desc limit 1", source, place)
        return rows[0] if rows else None

    def under(self, source: str, folder: str) -> list[Checkpoint]:
        """Return the rows of the places right in a folder, and of the folder itself, as they were first seen."""
        first, after = f"{folder}/", f"{folder}0"  # "0" follows "/"
        rows = self._where("source = ? and (place = ? or (place > ? and place < ?))", source, folder, first, after)
        return sorted((row for row in rows if "/" not in row.place[len(first) :]), key=lambda row: row.id)

    def folded_at(self, source: str, place: str) -> Checkpoint | None:
        """Return the row of a place that was folded last."""
        rows = self._where("source = ? and place = ? and state = 'folded' order by id desc limit 1", source, place)
        return rows[0] if rows else None

    def placed(self, place: str) -> list[Checkpoint]:
        """Return the rows of a place, of whatever source, in the order in which they were first seen."""
        ids = "select id from checkpoints where place = ?"  # needs no more than an index
        return self._where(f"id in ({ids}) order by id", place)

    def whose_name_has(self, text: str) -> list[Checkpoint]:
        """Return the rows with this text in their names, in the order in which they were first seen."""
        return self._where("instr(name, ?) order by id", text)

    def with_digest(self, digits: str) -> list[Checkpoint]:
        """Return the rows whose content's digest begins with these digits; of the same content, only the first."""
        return self._where("digest >= ? and digest < ? and duplicate_of is null order by id", digits, f"{digits}g")

    def of_content(self, digest: str) -> list[Checkpoint]:
        """Return every row with this digest, in the order in which they were first seen."""
        return self._where("digest = ? order by id", digest)

    def holding(self, digest: str) -> Checkpoint | None:
        """Return the row whose content was folded first with this digest."""
        rows = self._where("digest = ? and state = 'folded' and duplicate_of is null order by id limit 1", digest)
        return rows[0] if rows else None

    def of_files(self, files: str) -> Checkpoint | None:
        """Return the row whose files held the same, as their source said, and were folded first."""
        rows = self._where("files = ? and state = 'folded' and digest is not null order by id limit 1", files)
        return self.get(rows[0].duplicate_of) if rows and rows[0].duplicate_of else rows[0] if rows else None

    def in_state(self, *states: CheckpointState) -> list[Checkpoint]:
        """Return the rows in these states, in the order in which they were first seen."""
        return self._where(f"state in ({','.join('?' * len(states))}) order by id", *states)

    def ready(self, most: int = -1) -> list[Checkpoint]:
        """Return what waits for its fold, or the first so many: those that a person asked for, then as they were ready.

        What a crash ended goes behind all others, so that a checkpoint that kills the daemon keeps no other one waiting.
        """
        crashed = (
            "(select outcome is null from attempts where checkpoint = checkpoints.id order by id desc limit 1) is 1"
        )
        return self._where(f"state = 'ready' order by {crashed}, urgent is null, urgent, \"order\" limit ?", most)

    def folded_digests(self) -> frozenset[str]:
        """Return the digests of all that was ever folded."""
        query = "select distinct digest from checkpoints where state = 'folded' and digest is not null"
        return frozenset(row["digest"] for row in self._db.query(query))

    def digests_from(self, place: str) -> frozenset[str]:
        """Return the digests of what was folded from a place."""
        return frozenset(row.digest for row in self._where("place = ? and state = 'folded'", place) if row.digest)

    def count(self) -> dict[str, int]:
        """Return how many rows are in each state."""
        query = "select state, count(*) as n from checkpoints where duplicate_of is null group by state"
        return {row["state"]: row["n"] for row in self._db.query(query)}

    def _where(self, condition: str, *values: Any) -> list[Checkpoint]:
        return [_checkpoint(row) for row in self._db.table("checkpoints").rows_where(condition, values)]

    # ------------------------------------------------------------------------------------------------------- writing

    def add(self, sighting: Sighting, state: CheckpointState = "settling", *reasons: Reason) -> Checkpoint:
        """Record a place for the first time, or anew because what was folded from it has changed."""
        row = {
            "source": sighting.source,
            "place": sighting.place,
            "name": sighting.name,
            "fingerprint": sighting.fingerprint,
            "state": state,
            "since": utc_now(),
            "reasons": _dump(reasons),
            "owner": sighting.owner or None,
            "public": sighting.public,
            "licence": sighting.licence or None,
        }
        with transaction(self._db):
            added = self.get(inserted(self._db.table("checkpoints"), row))
            self._notices.add_verdict(added)
            return added

    def hide(self, sighting: Sighting) -> None:
        """Record that not everybody may see any more what was at a place, then or now."""
        query = "update checkpoints set public = ? where source = ? and place = ?"
        with transaction(self._db):
            self._db.execute(query, [sighting.public, sighting.source, sighting.place])

    def restore(self, row: Checkpoint) -> Checkpoint:
        """Write the row of what a version folded, by what its manifest says."""
        values = {key: value for key, value in asdict(row).items() if value is not None}
        self._db.table("checkpoints").insert(values | {"reasons": _dump(row.reasons)})
        attempt = {"checkpoint": row.id, "started_at": row.since, "outcome": "folded"}
        self._db.table("attempts").insert(attempt)
        return self.get(row.id)

    def next_id(self) -> int:
        """Return a number that no row has."""
        return self._next("id")

    def resight(self, number: int, sighting: Sighting) -> Checkpoint:
        """Record that what lies at a place has changed before it was folded: it settles again.

        What was set aside because of its place, not of its content, stays so until a person decides.
        """
        anew = {"fingerprint": sighting.fingerprint, "owner": sighting.owner or None, "public": sighting.public}
        anew["licence"] = sighting.licence or None
        with transaction(self._db):
            self._db.table("checkpoints").update(number, anew | {"order": None, "urgent": None, "digest": None})
            row = self.get(number)
            set_aside = row.state in ("held", "refused") and any(reason.code == EXISTING for reason in row.reasons)
            return row if set_aside else self.set_state(number, "settling")

    def set_state(
        self, number: int, state: CheckpointState, *reasons: Reason, who: str = US, **more: Any
    ) -> Checkpoint:
        """Write a state with its reasons; the time it was entered stays if nothing changes. `who`: by whom."""
        with transaction(self._db):
            changes: dict[str, Any] = {"state": state, "reasons": _dump(reasons), **more}
            if entered := self.get(number).state != state:
                changes["since"] = utc_now()
            self._db.table("checkpoints").update(number, changes)
            row = self.get(number)
            if entered:
                self._notices.add_verdict(row, who)
            return row

    def make_ready(self, number: int, **more: Any) -> Checkpoint:
        """Let a checkpoint wait for its fold; its place in the order is written when it is ready for the first time."""
        with transaction(self._db):
            if self.get(number).order is None:
                self._db.table("checkpoints").update(number, {"order": self._next("order")})
            return self.set_state(number, "ready", **more)

    def hurry(self, number: int) -> None:
        """Put a checkpoint behind those that a person asked for, before all others."""
        with transaction(self._db):
            self._db.table("checkpoints").update(number, {"urgent": self._next("urgent")})

    def _next(self, column: str) -> int:
        (last,) = self._db.conn.execute(f'select max("{column}") from checkpoints').fetchone()  # noqa: S608
        return (last or 0) + 1

    # ------------------------------------------------------------------------------------------------------ attempts

    def begin_attempt(self, number: int, **more: Any) -> int:
        """Write that a fold of this checkpoint begins, and what is known by then; a crash leaves it without an outcome."""
        with transaction(self._db):
            self.set_state(number, "folding", **more)
            return inserted(self._db.table("attempts"), {"checkpoint": number, "started_at": utc_now()})

    def end_attempt(self, attempt: int, outcome: str) -> None:
        """Write how an attempt ended: a verdict, or "abandoned" or "changed" when nobody is to blame and it does not count."""
        self._db.table("attempts").update(attempt, {"outcome": outcome})

    def attempts(self, number: int) -> list[Attempt]:
        """Return the attempts at one checkpoint, oldest first."""
        rows = self._db.table("attempts").rows_where("checkpoint = ? order by id", [number])
        return [Attempt(**row) for row in rows]


def _checkpoint(row: Mapping[str, Any]) -> Checkpoint:
    values = dict(row)
    values["reasons"] = tuple(Reason(**reason) for reason in json.loads(values["reasons"]))
    values["public"] = None if values["public"] is None else bool(values["public"])
    return Checkpoint(**values)


def _dump(reasons: Sequence[Reason]) -> str:
    return json.dumps([{key: cut(text) for key, text in asdict(reason).items()} for reason in reasons])
