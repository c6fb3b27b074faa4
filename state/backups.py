"""Copies of the database, each whole: from before a change of its tables, and of the last days."""

import os
import sqlite3
import time
from contextlib import closing
from itertools import pairwise
from pathlib import Path

from .errors import Unavailable

KEPT = 3  # daily copies: mergd.db, and the ones before it as mergd-1.db, mergd-2.db
DAY = 86400.0  # seconds


def folder_of(database: Path) -> Path:
    """Return where a database's copies lie."""
    return database.parent / "backups"


def keep_from_before(connection: sqlite3.Connection, database: Path, migration: str) -> Path:
    """Copy the database before this migration changes it; returns the copy. One from an earlier try is replaced."""
    target = folder_of(database) / f"pre-{migration}.db"
    _aside(connection, target).rename(target)
    _sync(target.parent)
    return target


def keep_daily(connection: sqlite3.Connection, database: Path) -> Path:
    """Copy the database of today, and let go of the oldest daily copy; returns the copy. At no moment there is none."""
    target = folder_of(database) / database.name
    aside = _aside(connection, target)
    names = [target, *(target.with_stem(f"{target.stem}-{k}") for k in range(1, KEPT))]
    for newer, older in reversed([*pairwise(names)]):
        if newer.exists():
            older.unlink(missing_ok=True)
            os.link(newer, older)
    aside.rename(target)
    _sync(target.parent)
    return target


def is_due(database: Path) -> bool:
    """Whether the newest daily copy is a day old, or there is none; one from the future, before a clock was set back."""
    try:
        made = (folder_of(database) / database.name).stat().st_mtime
    except FileNotFoundError:
        return True
    return not 0 <= time.time() - made < DAY


def _aside(connection: sqlite3.Connection, target: Path) -> Path:
    """Copy all that is committed into a synced file beside the target. Raises Unavailable if it cannot be written."""
    aside = target.with_name(f".{target.name}")
    try:
        target.parent.mkdir(mode=0o700, exist_ok=True)
        target.parent.chmod(0o700)
        _sync(target.parent.parent)
        aside.unlink(missing_ok=True)
        os.close(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        with closing(sqlite3.connect(aside)) as copy:
            connection.backup(copy)
            copy.execute(
                "PRAGMA journal_mode=delete"
            ).fetchall()  # one file, which also opens where nothing can be written
        _sync(aside)
    except (OSError, sqlite3.OperationalError) as error:
        aside.unlink(missing_ok=True)
        raise Unavailable(f"the database cannot be copied to {target}: {error}", "nothing was changed") from error
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    return aside


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
