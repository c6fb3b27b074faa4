"""The connection to the history's database: one that writes, on one thread; any number that only read."""

import os
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlite_utils import Database
from sqlite_utils.db import Table

from .errors import Damaged, Misconfigured, Unavailable
from .migrations import migrations

# A version's number and those of its ancestors, as the table `line`; takes the number.
LINE = "with recursive line(n) as (select ? union all select parent from versions join line on number = n)"
# The checkpoints that a version and its ancestors folded, and none of them removed, as the table `model`.
IN_MODEL = f"""{LINE}, model(n, checkpoint) as (select n, checkpoint from line join versions on number = n
    where checkpoint is not null and checkpoint not in
    (select removed from line join versions on number = n where removed is not null))"""  # noqa: S608
_COMMON = "PRAGMA busy_timeout=5000; PRAGMA foreign_keys=on;"
# FULL: each commit is on the disk before anybody is told of it. The published files are there before the commit.
_WRITER = "PRAGMA journal_mode=wal; PRAGMA synchronous=full; PRAGMA journal_size_limit=16777216;"


def open_writer(path: Path) -> Database:
    """Open the database for the holder of the state's lock, and bring its tables up to date.

    Raises Damaged if SQLite finds it broken, Misconfigured if a newer mergd made it.
    """
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))  # SQLite's other files get the same mode
    connection = sqlite3.connect(path, timeout=5)
    try:
        return _prepared(Database(connection), path)
    except (sqlite3.DatabaseError, UnicodeError) as error:
        connection.close()
        hint = "bring a backup of it back, or make it again from versions/*/manifest.json: mergd rebuild"
        raise Damaged(f"{path}: {error}", hint) from error
    except BaseException:
        connection.close()
        raise


def _prepared(db: Database, path: Path) -> Database:
    db.conn.executescript(_COMMON + _WRITER)
    _check(db)
    unknown = {done.name for done in migrations.applied(db)} - {known.name for known in migrations._migrations}
    if unknown:
        raise Misconfigured(f"{path} was made by a newer mergd (it has {', '.join(sorted(unknown))})", "upgrade mergd")
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


def _check(db: Database) -> None:
    (answer,) = db.conn.execute("PRAGMA quick_check(1)").fetchone()
    if answer != "ok":
        raise sqlite3.DatabaseError(answer)


@contextmanager
def transaction(db: Database) -> Iterator[None]:
    """All or nothing. The write lock is taken at once, so that nothing read inside can grow stale."""
    db.conn.execute("BEGIN IMMEDIATE")
    try:
        with db.atomic():
            yield
    except BaseException:
        db.conn.rollback()
        raise
    db.conn.commit()


def inserted(table: Table, row: Mapping[str, Any]) -> int:
    """Insert a row and return the integer that is its key."""
    key = table.insert(dict(row)).last_pk
    assert isinstance(key, int)
    return key
