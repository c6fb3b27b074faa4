"""Errors of the disk and of SQLite, by who can mend them: those that the library itself raises, not made up ones."""

import errno
import os
import sqlite3
from pathlib import Path

import pytest

from mergd.state.database import transaction
from mergd.state.disk_errors import meaning
from mergd.state.errors import Busy, Damaged, DiskFails, DiskFull, Uncertain
from mergd.state.history import History


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENOSPC, DiskFull),
        (errno.EDQUOT, DiskFull),
        (errno.EIO, DiskFails),
        (errno.EROFS, DiskFails),
        (errno.ENOENT, FileNotFoundError),
        (errno.EACCES, PermissionError),
        (errno.EMFILE, OSError),
    ],
)
def test_an_error_of_the_system(number: int, kind: type[Exception]) -> None:
    error = OSError(number, os.strerror(number), "somewhere")
    found = meaning(error)
    assert type(found) is kind
    assert "somewhere" in str(found)


def test_an_error_of_nobody_here_stays_as_it_is() -> None:
    error = ValueError("x")
    assert meaning(error) is error


def test_a_database_without_room_changed_nothing(tmp_path: Path) -> None:
    with History(tmp_path / "mergd.db", write=True) as history:
        connection = history._db.conn
        connection.execute(f"pragma max_page_count = {connection.execute('pragma page_count').fetchone()[0]}")
        history.pause("me", "before")
        with pytest.raises(sqlite3.OperationalError) as raised, transaction(history._db):
            history.resume()
            connection.execute("create table large as select zeroblob(100000) as x")
        assert isinstance(meaning(raised.value), DiskFull)
        assert not connection.in_transaction
        assert history.paused()


def test_a_database_that_another_one_writes_is_busy(tmp_path: Path) -> None:
    with History(tmp_path / "mergd.db", write=True) as history, sqlite3.connect(tmp_path / "mergd.db") as other:
        history._db.conn.execute("pragma busy_timeout = 0")
        other.execute("begin immediate")
        with pytest.raises(sqlite3.OperationalError) as raised:
            history.pause("me", "")
        assert isinstance(meaning(raised.value), Busy)
    other.close()


def test_a_database_that_is_none_is_damaged(tmp_path: Path) -> None:
    (tmp_path / "mergd.db").write_bytes(b"no database" * 1000)
    db = sqlite3.connect(tmp_path / "mergd.db")
    with pytest.raises(sqlite3.DatabaseError) as raised:
        db.execute("select * from versions")
    db.close()
    found = meaning(raised.value)
    assert isinstance(found, Damaged) and not isinstance(found, Uncertain)


@pytest.mark.parametrize("name", ["SQLITE_IOERR_FSYNC", "SQLITE_IOERR_WRITE", "SQLITE_READONLY", "SQLITE_CANTOPEN"])
def test_what_may_have_been_committed_is_uncertain(name: str) -> None:
    error = sqlite3.OperationalError(name)
    error.sqlite_errorcode = getattr(sqlite3, name)
    found = meaning(error)
    assert isinstance(found, Uncertain)
    assert found.exit_code == 74
    assert "start mergd again" in found.hint


def test_no_room_to_open_a_database_is_a_full_disk() -> None:
    error = sqlite3.OperationalError("disk I/O error")
    error.sqlite_errorcode = sqlite3.SQLITE_IOERR_SHMSIZE
    assert isinstance(meaning(error), DiskFull)
