"""The history: what was folded into which version, every move of the head, and what people asked for.

One process writes it, on one thread: the holder of the state's lock.
"""

import json
from array import array
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, fields
from itertools import chain
from operator import attrgetter
from pathlib import Path
from typing import Any, Self

from .backups import keep_daily
from .checkpoints import Checkpoints
from .checks import Checks
from .clock import utc_now
from .contributions import Contributions
from .database import IN_MODEL, LINE, check_all, inserted, open_reader, open_writer, transaction
from .decided import Decided
from .errors import Busy
from .evaluations import Evaluations
from .notices import Notices
from .pushes import Pushes
from .records import MADE_BY_ITSELF, Checkpoint, Contribution, Files, Move, Totals, Version, WeightReport
from .tags import Tags
from .tallies import Tallies
from .tasks import Tasks


class History:
    """The versions, the head and its moves, the pins, the pauses and the requests.

    `checkpoints` has the rows of checkpoints, `contributions` what they brought, `decided` what people decided on them,
    `evaluations` what gates measured, `tags` the names of versions, `pushes` what went to the Hub, `tasks` what is still
    to be done for people, `checks` what is known of versions' files, `notices` what the configuration's hooks are told,
    `tallies` what all of it comes to.
    """

    def __init__(self, path: Path, write: bool = False) -> None:
        self._db, self._path = open_writer(path) if write else open_reader(path), path
        self.checkpoints = Checkpoints(self._db)
        self.contributions = Contributions(self._db)
        self.decided = Decided(self._db)
        self.evaluations = Evaluations(self._db)
        self.tags = Tags(self._db)
        self.pushes = Pushes(self._db)
        self.tasks = Tasks(self._db)
        self.checks = Checks(self._db)
        self.notices = Notices(self._db)
        self.tallies = Tallies(self._db)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._db.close()

    def all_or_nothing(self) -> AbstractContextManager[None]:
        """Return a block whose writes count only if all of it is done."""
        return transaction(self._db)

    def tidy(self) -> None:
        """Keep the write-ahead log small; cheap, done from time to time. It waits for no reader: there is a next time."""
        (patience,) = self._db.conn.execute("PRAGMA busy_timeout").fetchone()
        self._db.conn.execute("PRAGMA busy_timeout=0")
        try:
            self._db.conn.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        finally:
            self._db.conn.execute(f"PRAGMA busy_timeout={patience}")

    def check_all(self) -> None:
        """Read all of the database. Raises Damaged if any of it is not as it was written."""
        check_all(self._db, self._path)

    def keep_daily(self) -> Path:
        """Keep a copy of the database as it is now; returns it. Raises Unavailable if it cannot be written."""
        return keep_daily(self._db.conn, self._path)

    # ---------------------------------------------------------------------------------------------------------- pins

    def pin(self, values: Mapping[str, Any]) -> None:
        """Fix values for the life of this state, or change those that may change (the base model's file stamps)."""
        self._db.table("pins").upsert_all(
            [{"name": name, "value": json.dumps(value)} for name, value in values.items()], pk="name"
        )

    def pins(self, *names: str) -> dict[str, Any]:
        """Return what init fixed: all, or what has these names; some are as long as the list of weights."""
        chosen = f"name in ({','.join('?' * len(names))})" if names else "1"
        return {row["name"]: json.loads(row["value"]) for row in self._db.table("pins").rows_where(chosen, names)}

    # ------------------------------------------------------------------------------------------------------- versions

    def versions(self, last: int = -1) -> list[Version]:
        """Return every version, or the `last` newest ones; oldest first."""
        return list(self.newest(last))[::-1]

    def newest(self, last: int = -1) -> Iterator[Version]:
        """Yield every version, or the `last` newest ones; newest first, one at a time."""
        query = f"select {_COLUMNS} from versions order by number desc limit ?"  # noqa: S608
        return (_version(row) for row in self._db.query(query, [last]))

    def with_files(self) -> list[Version]:
        """Return the versions whose files are there, oldest first; retention bounds how many."""
        query = f"select {_COLUMNS} from versions where slots_kept or model_kept order by number"  # noqa: S608
        return [_version(row) for row in self._db.query(query)]

    def count_versions(self) -> int:
        """Return how many versions there ever were."""
        (count,) = self._db.conn.execute("select count(*) from versions").fetchone()
        return int(count)

    def version(self, number: int) -> Version | None:
        """Return one version."""
        rows = list(self._db.query(f"select {_COLUMNS} from versions where number = ?", [number]))  # noqa: S608
        return _version(rows[0]) if rows else None

    def head(self) -> Version | None:
        """Return the version that is published and that the next fold starts from."""
        moves = self.moves(1)
        return self.version(moves[0].to_version) if moves else None

    def besides_head(self) -> list[Version]:
        """Return where the head could move, nearest first: its ancestors, then others, the newest first."""
        head = self.head()
        line = {version.number for version in self.lineage(head.number)} if head else set()
        kept = [
            version for version in self.with_files() if version.kept and (not head or version.number != head.number)
        ]
        return sorted(kept, key=lambda version: (version.number not in line, -version.number))

    def lineage(self, number: int | None, last: int = -1) -> list[Version]:
        """Return a version and its ancestors, or the `last` newest of them, newest first; no more than these are read."""
        line = f"{LINE[:-1]} limit ?)"
        query = f"{line} select {_COLUMNS} from versions join line on number = n order by number desc"  # noqa: S608
        return [_version(row) for row in self._db.query(query, [number, last])]

    def checkpoint_in_line(self, digest: str, number: int | None) -> Checkpoint | None:
        """Return the row that holds this content, if a version or one of its ancestors folded it, and none removed it."""
        query = f"""{IN_MODEL} select checkpoint from model
            join checkpoints on checkpoints.id = checkpoint where checkpoints.digest = ? limit 1"""  # noqa: S608
        rows = list(self._db.query(query, [number, digest]))
        return self.checkpoints.get(rows[0]["checkpoint"]) if rows else None

    def recipe(self, number: int | None) -> tuple[int, ...]:
        """Return the ids of the checkpoints that are in the model at a version, in the order of their folds."""
        rows = self._db.query(f"{IN_MODEL} select checkpoint from model order by n", [number])  # noqa: S608
        return tuple(row["checkpoint"] for row in rows)

    def digests_in_line(self, number: int | None) -> frozenset[str]:
        """Return the digests of what a version and its ancestors folded, and none removed."""
        query = f"""{IN_MODEL} select checkpoints.digest as content from model
            join checkpoints on checkpoints.id = checkpoint where content is not null"""  # noqa: S608
        return frozenset(row["content"] for row in self._db.query(query, [number]))

    def not_public(self, number: int) -> list[str]:
        """Return the names of what a version and its ancestors folded that was not known to be everybody's."""
        query = f"""{LINE} select coalesce(name, 'what v' || n || ' folded') as name from versions join line on number = n
            left join checkpoints on checkpoints.id = versions.checkpoint
            where versions.cause = 'fold' and public is not 1 order by n"""  # noqa: S608
        return [row["name"] for row in self._db.query(query, [number])]

    def next_number(self) -> int:
        """Return the number that the next version gets."""
        (last,) = self._db.conn.execute("select max(number) from versions").fetchone()
        return (last or 0) + 1

    def weight_reports(self, number: int) -> dict[str, WeightReport]:
        """Return what a version's fold did to each weight."""
        row = self._db.conn.execute("select packed from weight_reports where version = ?", [number]).fetchone()
        packed, names = row[0] if row else b"", self.pins("weights")["weights"]
        each = len(packed) // len(names)  # an older mergd wrote fewer numbers a weight, and doubles before that
        values = array("f" if each in (4 * _WIDTH, 4 * (_WIDTH - 1)) else "d", packed)
        width = len(values) // len(names)
        return {name: WeightReport(*values[i * width : (i + 1) * width]) for i, name in enumerate(names) if width}

    # ------------------------------------------------------------------------------------------------ the commit point

    def commit_fold(
        self,
        version: Version,
        digest: str,
        weights: Sequence[WeightReport],
        attempt: int,
        who: str,
        hooks: Sequence[str],
        replaced: int | None = None,
        contribution: Contribution | None = None,
    ) -> Move:
        """Make a drafted fold true, all at once: checkpoint, version, head, and what the hooks are owed.

        `digest` is the checkpoint's; `replaced` the head in whose stead the version comes, if not onto it;
        `contribution` what later ones are judged by. Raises Busy if the head is no longer that, or the version's
        parent; then nothing changed.
        """
        assert version.checkpoint is not None
        with transaction(self._db):
            self._insert(version, weights)
            if contribution is not None:
                self.contributions.add(contribution)
            first = self.checkpoints.holding(digest)  # the same content may come back after a rollback
            more: dict[str, Any] = {"digest": digest, "urgent": None, "duplicate_of": first.id if first else None}
            self.checkpoints.set_state(version.checkpoint, "folded", **more)
            self.checkpoints.end_attempt(attempt, "folded")
            expected, why = (version.parent, "fold") if replaced is None else (replaced, "replace")
            return self._move(expected, version.number, who, why, hooks)

    def commit_task(
        self, version: Version, weights: Sequence[WeightReport], task: int, who: str, hooks: Sequence[str]
    ) -> Move:
        """Make true what a task made of the head: version, head, what the hooks are owed, and that the task is done.

        Raises Busy if the head is no longer the version's parent; then nothing changed.
        """
        with transaction(self._db):
            self._insert(version, weights)
            self.tasks.end(task, f"done: {version}")
            return self._move(version.parent, version.number, who, version.cause, hooks)

    def commit_restored(self, number: int, stamps: Mapping[str, tuple[int, int]], task: int) -> None:
        """Promise the files of a version again, which a task has made once more.

        Unless it is the head, it gets a tag: retention would drop them before whoever asked for them is done with them.
        """
        head = self.head()
        with transaction(self._db):
            if head is None or head.number != number:
                self.tags.put(f"replayed-{number}", number, self.tasks.get(task).who)
            now = {"slots_kept": 1, "model_kept": 1, "damaged": None, "stamps": json.dumps(stamps)}
            self._db.table("versions").update(number, now)
            self.tasks.end(task, f"done: v{number}")

    def restore(self, version: Version, contribution: Contribution | None = None) -> None:
        """Write a version's row again, by what its manifest says; its parent's was written before."""
        self._insert(version, ())
        if contribution is not None:
            self.contributions.add(contribution)

    def move_head(self, to: int, who: str, why: str, hooks: Sequence[str]) -> Move:
        """Move the head to another version."""
        with transaction(self._db):
            head = self.head()
            return self._move(head.number if head else None, to, who, why, hooks)

    def _move(self, expected: int | None, to: int, who: str, why: str, hooks: Sequence[str]) -> Move:
        head = self.head()
        if (head.number if head else None) != expected:
            raise Busy(f"the head moved to {head} meanwhile")
        at = utc_now()
        row = {"from_version": expected, "to_version": to, "who": who, "why": why, "at": at}
        move = Move(inserted(self._db.table("moves"), row), expected, to, who, why, at)
        self._db.table("tellings").insert_all({"hook": hook, "move": move.id, "told_at": None} for hook in hooks)
        self.notices.add_move(move)
        return move

    def _insert(self, version: Version, weights: Sequence[WeightReport]) -> None:
        row = asdict(version)
        row |= row.pop("totals")
        row |= {name: json.dumps(row[name]) for name in _JSON}
        self._db.table("versions").insert(row)
        packed = array("f", chain.from_iterable(map(_NUMBERS, weights))).tobytes()
        self._db.table("weight_reports").insert({"version": version.number, "packed": packed})

    def drop_files(self, number: int, what: Files) -> None:
        """Withdraw the promise that a version's slots, or its model, are there; before they go."""
        self._db.table("versions").update(number, {f"{what}_kept": 0})

    # --------------------------------------------------------------------------------------------- moves and tellings

    def moves(self, last: int | None = None) -> list[Move]:
        """Return the moves of the head, newest first."""
        return [Move(**row) for row in self._db.table("moves").rows_where(order_by="id desc", limit=last)]

    def moves_that_keep(self, last: int) -> list[Move]:
        """Return the newest move, and the `last` newest ones by people; newest first."""
        marks = ", ".join("?" * len(MADE_BY_ITSELF))
        query = f"""select * from moves where id = (select max(id) from moves) or id in (select id from moves
            where why not in ({marks}) order by id desc limit ?) order by id desc"""  # noqa: S608
        return [Move(**row) for row in self._db.query(query, [*MADE_BY_ITSELF, last])]

    def owed(self, hook: str | None = None, most: int = -1) -> list[tuple[str, Move]]:
        """Return which hooks, or what one hook, is still to be told of which moves, in order, or the `most` oldest ones."""
        whose, values = ("hook = ?", [hook]) if hook is not None else ("1", [])
        query = f"""select hook, moves.* from tellings join moves on moves.id = move where told_at is null and {whose}
            order by move, hook limit ?"""  # noqa: S608
        return [(row.pop("hook"), Move(**row)) for row in self._db.query(query, [*values, most])]

    def owe(self, hook: str) -> None:
        """Have a hook told of the newest move, if it was there before the hook was."""
        query = "insert or ignore into tellings (hook, move) select ?, max(id) from moves having max(id) is not null"
        with transaction(self._db):
            self._db.execute(query, [hook])

    def told(self, hook: str, move: int) -> None:
        """Write that a hook was told."""
        self._db.table("tellings").update((hook, move), {"told_at": utc_now()})

    # ------------------------------------------------------------------------------------------- pauses and requests

    def paused(self) -> dict[str, Any] | None:
        """Return why, who and since when, while the head must not move by itself."""
        rows = list(self._db.table("pauses").rows_where("resumed_at is null", order_by="id desc", limit=1))
        return {"why": rows[0]["why"], "who": rows[0]["who"], "since": rows[0]["at"]} if rows else None

    def pause(self, who: str, why: str) -> None:
        """Stop moving the head by itself, also over restarts."""
        with transaction(self._db):
            self.resume()
            self._db.table("pauses").insert({"why": why, "who": who, "at": utc_now()})

    def resume(self) -> bool:
        """Go on moving the head; returns whether it was paused."""
        with transaction(self._db):
            was_paused = self.paused() is not None
            self._db.execute("update pauses set resumed_at = ? where resumed_at is null", [utc_now()])
        return was_paused

    def record_request(self, verb: str, arguments: Mapping[str, Any], who: str) -> int:
        """Write what somebody asked for, before it is done."""
        row = {"verb": verb, "arguments": json.dumps(arguments), "who": who, "at": utc_now()}
        return inserted(self._db.table("requests"), row)

    def record_answer(self, request: int, answer: str) -> None:
        """Write how a request ended."""
        self._db.table("requests").update(request, {"answer": answer})


_COLUMNS = """number, parent, cause, checkpoint, rule, folded, shares, mean_norm, readout_norm, scale, digest, created_at,
    seconds, bytes_read, bytes_written, slots_kept, model_kept, removed, arguments, gates, stamps, method,
    checked_at, damaged"""
_NUMBERS = attrgetter(*(field.name for field in fields(WeightReport)))
_WIDTH = len(fields(WeightReport))  # numbers for each weight
_JSON = ("seconds", "arguments", "gates", "stamps", "method")  # columns of versions


def _version(row: dict[str, Any]) -> Version:
    totals = Totals(*(row.pop(name) for name in ("folded", "shares", "mean_norm", "readout_norm")))
    row |= {name: json.loads(row[name] or "{}") for name in _JSON}
    row["gates"], row["stamps"] = tuple(row["gates"]), {name: (s, m) for name, (s, m) in row["stamps"].items()}
    row["slots_kept"], row["model_kept"] = bool(row["slots_kept"]), bool(row["model_kept"])
    return Version(totals=totals, **row)
