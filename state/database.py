"""The connection to the history's database: one that writes, on one thread; any number that only read."""

import os
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from sqlite_utils import Database
from sqlite_utils.db import Table

from . import backups
from .disk_errors import RESTORE, meaning
from .errors import Damaged, DiskFull, MergdError, Misconfigured, Unavailable
from .migrations import migrations

# A version's number and those of its ancestors, as the table `line`; takes the number.
LINE = "with recursive line(n) as (select ? union all select parent from versions join line on number = n)"
# The checkpoints that are in the model at a version, each with the version that folded it, as the table `model`: those that
# it and its ancestors folded, back to a re-merge, which says itself what it merged; without those that one of them removed.
IN_MODEL = """with recursive line(n) as (select ? union all
        select parent from versions join line on number = n where cause != 're-merge'),
    folds(n, checkpoint) as (select n, checkpoint from line join versions on number = n union
        select coalesce(folded.number, n), value from line join versions merged on merged.number = n,
        json_each(merged.arguments, '$.folds') left join versions folded on folded.checkpoint = value
        where merged.cause = 're-merge'),
    model(n, checkpoint) as (select n, checkpoint from folds where checkpoint is not null and checkpoint not in
        (select removed from line join versions on number = n where removed is not null))"""
FAULTS = 20  # that are told of, at most
_COMMON = "PRAGMA busy_timeout=5000; PRAGMA foreign_keys=on;"
# FULL: each commit is on the disk before anybody is told of it. The published files are there before the commit.
_WRITER = "PRAGMA journal_mode=wal; PRAGMA synchronous=full; PRAGMA journal_size_limit=16777216;"


def open_writer(path: Path) -> Database:
    """Open the database for the holder of the state's lock, and bring its tables up to date; a copy from before is kept.

    Raises Damaged if SQLite finds it broken, DiskFull if there is no room to open it, Misconfigured if a newer mergd
    made it, Unavailable if no copy can be kept.
    """
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))  # SQLite's other files get the same mode
    connection = sqlite3.connect(path, timeout=5)
    try:
        return _prepared(Database(connection), path)
    except (sqlite3.DatabaseError, UnicodeError) as error:
        connection.close()
        raise _as_ours(error, path) from error
    except BaseException:
        connection.close()
        raise


def _prepared(db: Database, path: Path) -> Database:
    db.conn.executescript(_COMMON + _WRITER)
    _check(db)
    unknown = {done.name for done in migrations.applied(db)} - {known.name for known in migrations._migrations}
    if unknown:
        raise Misconfigured(f"{path} was made by a newer mergd (it has {', '.join(sorted(unknown))})", "upgrade mergd")
    _settle(db)
    if (pending := migrations.pending(db)) and migrations.applied(db):
        backups.keep_from_before(db.conn, path, pending[0].name)
    migrations.apply(db)
    return db


def open_reader(path: Path) -> Database:
    """Open the database to read only; a writer may be at work. Raises Unavailable if an older mergd wrote it last."""
    db = Database(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=5))
    try:
        db.conn.executescript(_COMMON + "PRAGMA query_only=on;")
        if migrations.pending(db):
            raise Unavailable(f"{path} is an older mergd's", "to bring it up to date: mergd run, or mergd run --once")
    except UnicodeError as error:
        db.close()
        raise sqlite3.DatabaseError(str(error)) from error
    except BaseException:
        db.close()
        raise
    return db


def _settle(db: Database) -> None:
    """Make durable what a crash left written and not synced, before anybody is told of it."""
    try:
        db.conn.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    except sqlite3.Error as error:
        if not isinstance(meaning(error), DiskFull):
            raise


def _check(db: Database) -> None:
    (answer,) = db.conn.execute("PRAGMA quick_check(1)").fetchone()
    if answer != "ok":
        raise sqlite3.DatabaseError(answer)


def check_all(db: Database, path: Path) -> None:
    """Read all of the database, its indexes and where its rows lead. Raises Damaged, with what was found first."""
    try:
        found = next(_faults(db), None)
    except sqlite3.DatabaseError as error:
        raise _as_ours(error, path) from error
    if found is not None:
        raise _as_ours(sqlite3.DatabaseError(found), path)


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


def _as_ours(error: sqlite3.DatabaseError | UnicodeError, path: Path) -> MergdError:
    """Return what SQLite says by who can mend it: another process that writes and a full disk are no damage."""
    known = meaning(error)
    if isinstance(known, MergdError) and type(known) is not Damaged:
        return type(known)(f"{path}: {known}", known.hint)
    return Damaged(f"{path}: {known}", RESTORE)


@contextmanager
def transaction(db: Database) -> Iterator[None]:
    """All or nothing. The write lock is taken at once, so that nothing read inside can grow stale.

    Inside another one it is a part of that.
    """
    if db.conn.in_transaction:
        with db.atomic():
            yield
        return
    db.conn.execute("BEGIN IMMEDIATE")
    try:
        with db.atomic():
            yield
        db.conn.commit()
    except BaseException:
        db.conn.rollback()
        raise


def inserted(table: Table, row: Mapping[str, Any]) -> int:
    """Insert a row and return the integer that is its key."""
    key = table.insert(dict(row)).last_pk
    assert isinstance(key, int)
    return key
