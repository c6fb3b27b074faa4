"""The database: how each connection is set, copies from before migrations and of the last days, and that damage is found."""

import os
import re
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mergd.state import backups
from mergd.state.backups import DAY, KEPT, folder_of, is_due
from mergd.state.database import open_reader, open_writer, transaction
from mergd.state.errors import Busy, Damaged, Misconfigured, Unavailable
from mergd.state.history import History
from mergd.state.migrations import migrations
from mergd.state.records import Checkpoint, FileStamp, Reason, Sighting

OLD = Path(__file__).parent / "databases" / "m003.sql"  # written by the mergd that had three migrations
SIGHTING = Sighting("directory", "/watch/a", "a", (FileStamp("model.safetensors", 1, 1, 10, 1, 1),))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "mergd.db"


@pytest.fixture
def history(path: Path) -> Iterator[History]:
    with History(path, write=True) as history:
        yield history


@pytest.fixture
def old(path: Path) -> Path:
    """A database as an older mergd left it."""
    db = sqlite3.connect(path)
    db.executescript(OLD.read_text())
    db.execute("pragma journal_mode=wal").fetchall()
    db.close()
    return path


def rows(path: Path, *but: str) -> dict[str, list[Any]]:
    """Return every row of every table, but of some."""
    db = sqlite3.connect(path)
    tables = [name for (name,) in db.execute("select name from sqlite_master where type = 'table'") if name not in but]
    found = {name: db.execute(f'select * from "{name}"').fetchall() for name in tables}
    db.close()
    return found


def files(path: Path) -> set[str]:
    """Return the copies that lie in the folder, hidden ones too."""
    return {name for name in os.listdir(folder_of(path))} if folder_of(path).exists() else set()


# ------------------------------------------------------------------------------------------------------- connections


def asked(connection: sqlite3.Connection, pragma: str) -> Any:
    (answer,) = connection.execute(f"pragma {pragma}").fetchone()
    return answer


def test_the_writer_waits_for_the_disk_and_both_hold_to_foreign_keys(history: History, path: Path) -> None:
    with History(path) as reader:
        for connection in (history._db.conn, reader._db.conn):
            assert asked(connection, "foreign_keys") == 1
            assert asked(connection, "busy_timeout") == 5000
            assert asked(connection, "mmap_size") == 0
        assert (asked(history._db.conn, "synchronous"), asked(history._db.conn, "journal_mode")) == (2, "wal")
        assert asked(reader._db.conn, "query_only") == 1


def test_a_reader_could_not_write_even_if_it_were_asked_to(history: History, path: Path) -> None:
    with History(path) as reader:
        reader._db.conn.execute("pragma query_only=off")
        with pytest.raises(sqlite3.OperationalError, match="readonly"):
            reader._db.conn.execute("delete from pins")


def test_every_table_of_ours_is_strict(history: History) -> None:
    listed = history._db.conn.execute("pragma table_list").fetchall()
    ours = {name: strict for schema, name, kind, _, _, strict in listed if not name.startswith(("sqlite_", "_sqlite_"))}
    assert set(ours) >= {"pins", "checkpoints", "versions", "moves", "decisions", "contributions"}
    assert {name for name, strict in ours.items() if not strict} == set()


def test_every_row_that_is_led_to_must_be_there(history: History) -> None:
    with pytest.raises(sqlite3.IntegrityError, match="FOREIGN KEY"):
        history._db.table("attempts").insert({"checkpoint": 7, "started_at": "now"})


def move_nowhere(history: History) -> None:
    """Move the head to a version that is not there."""
    with pytest.raises(sqlite3.IntegrityError):
        history.move_head(7, "me", "why", [])


WRITES: dict[str, Callable[[History, Checkpoint], object]] = {
    "pause": lambda history, row: history.pause("me", "why"),
    "resume": lambda history, row: history.resume(),
    "move": lambda history, row: move_nowhere(history),
    "state": lambda history, row: history.checkpoints.set_state(row.id, "held"),
    "ready": lambda history, row: history.checkpoints.make_ready(row.id),
    "hurry": lambda history, row: history.checkpoints.hurry(row.id),
    "resight": lambda history, row: history.checkpoints.resight(row.id, SIGHTING),
    "attempt": lambda history, row: history.checkpoints.begin_attempt(row.id),
}


@pytest.mark.parametrize("name", WRITES)
def test_what_is_read_to_be_written_is_read_under_the_write_lock(history: History, name: str) -> None:
    row = history.checkpoints.add(SIGHTING)
    said: list[str] = []
    history._db.conn.set_trace_callback(said.append)
    WRITES[name](history, row)
    read = [i for i, statement in enumerate(said) if re.match(r"(?i)select (?!name from sqlite_master)", statement)]
    wrote = [i for i, statement in enumerate(said) if re.match(r"(?i)update|insert|delete", statement)]
    assert read
    assert wrote
    assert said[0] == "BEGIN IMMEDIATE"
    assert [statement for statement in said if statement.startswith("BEGIN")] == ["BEGIN IMMEDIATE"]
    assert said[-1] in ("COMMIT", "ROLLBACK")
    assert max(read[0], wrote[-1]) < len(said) - 1


def test_a_transaction_inside_another_is_a_part_of_it(history: History, path: Path) -> None:
    with pytest.raises(KeyError), transaction(history._db):
        history.pin({"kept": 1})
        with transaction(history._db):
            history.pin({"inner": 2})
        with pytest.raises(ValueError, match="inner"), transaction(history._db):
            history.pin({"kept": 3})
            raise ValueError("inner")
        assert history.pins() == {"kept": 1, "inner": 2}
        with History(path) as reader:
            assert reader.pins() == {}
        raise KeyError("outer")
    assert history.pins() == {}


def test_a_database_that_somebody_else_writes_is_busy_and_not_damaged(path: Path) -> None:
    History(path, write=True).close()
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("pragma locking_mode=exclusive")
    other.execute("begin exclusive")
    with pytest.raises(Busy, match="locked"):
        open_writer(path)
    other.close()


# -------------------------------------------------------------------------------------------------------- migrations


def test_an_old_database_is_brought_up_to_date_and_a_copy_from_before_is_kept(old: Path) -> None:
    before = rows(old)
    with History(old, write=True) as history:
        assert not migrations.pending(history._db)
        assert [version.number for version in history.versions()] == [1, 2]
        assert [row.name for row in history.checkpoints.all()] == ["c1", "c2", "c3"]
        assert history.paused() == {"why": "a look at it", "who": "uid 1000", "since": "2026-11-21T18:04:26.004Z"}
        history.check_all()
    copy = folder_of(old) / "pre-m004_replaces.db"
    assert files(old) == {copy.name}
    assert rows(copy) == before
    assert (folder_of(old).stat().st_mode & 0o777, copy.stat().st_mode & 0o777) == (0o700, 0o600)


def test_the_copy_from_before_opens_again(old: Path) -> None:
    History(old, write=True).close()
    after = rows(old, "_sqlite_migrations")
    (folder_of(old) / "pre-m004_replaces.db").rename(old)
    History(old, write=True).close()
    assert rows(old, "_sqlite_migrations") == after


def test_nothing_is_copied_where_nothing_is_to_be_changed(path: Path) -> None:
    for _ in range(2):
        History(path, write=True).close()
    assert files(path) == set()


def test_without_a_copy_nothing_is_changed(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = rows(old)

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(Unavailable, match="No space left") as raised:
        patch.setattr(backups, "_sync", full)
        open_writer(old)
    assert "nothing was changed" in raised.value.hint
    assert rows(old) == before
    assert files(old) == set()
    History(old, write=True).close()
    assert files(old) == {"pre-m004_replaces.db"}


def test_an_old_database_is_not_touched_by_who_only_reads(old: Path) -> None:
    before = rows(old)
    with pytest.raises(Unavailable, match="older"):
        open_reader(old)
    assert rows(old) == before
    assert files(old) == set()


def test_a_newer_database_is_refused_before_anything_is_copied(old: Path) -> None:
    db = sqlite3.connect(old)
    db.execute("insert into _sqlite_migrations (migration_set, name, applied_at) values ('mergd', 'm999_new', 'now')")
    db.commit()
    db.close()
    before = rows(old)
    with pytest.raises(Misconfigured, match="m999_new"):
        open_writer(old)
    assert rows(old) == before
    assert files(old) == set()


# ----------------------------------------------------------------------------------------------------- daily copies


def test_the_last_daily_copies_are_kept(history: History, path: Path) -> None:
    for day in range(5):
        history.pin({"day": day})
        with History(path) as reader:
            reader.check_all()
            assert reader.keep_daily() == folder_of(path) / "mergd.db"
    names = ["mergd.db", "mergd-1.db", "mergd-2.db"]
    assert files(path) == set(names)
    assert len(names) == KEPT
    assert [rows(folder_of(path) / name)["pins"] for name in names] == [[("day", str(day))] for day in (4, 3, 2)]
    assert {(folder_of(path) / name).stat().st_mode & 0o777 for name in names} == {0o600}


def test_a_copy_has_what_was_committed_and_not_what_was_not(history: History, path: Path) -> None:
    history.pin({"a": 1})
    with history.all_or_nothing():
        history.pin({"a": 2})
        with History(path) as reader:
            reader.keep_daily()
    assert rows(folder_of(path) / "mergd.db")["pins"] == [("a", "1")]


def test_a_copy_is_one_file_that_opens_where_nothing_can_be_written(history: History, path: Path) -> None:
    history.pin({"a": 1})
    copy = history.keep_daily()
    db = sqlite3.connect(f"{copy.as_uri()}?mode=ro", uri=True)
    assert asked(db, "journal_mode") == "delete"
    db.close()
    with History(copy, write=True) as again:
        assert again.pins() == {"a": 1}


@pytest.mark.parametrize("step", ["_sync", "link", "rename"])
def test_whatever_fails_there_is_a_copy(
    history: History, path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    for day in range(3):
        history.pin({"day": day})
        history.keep_daily()

    def fail(*arguments: object) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch, pytest.raises((OSError, Unavailable)):
        patch.setattr({"_sync": backups, "link": os, "rename": Path}[step], step, fail)
        history.keep_daily()
    assert rows(folder_of(path) / "mergd.db")["pins"] == [("day", "2")]
    for day in (3, 4, 5):
        history.pin({"day": day})
        history.keep_daily()
    found = [rows(folder_of(path) / name)["pins"] for name in ("mergd.db", "mergd-1.db", "mergd-2.db")]
    assert found == [[("day", str(day))] for day in (5, 4, 3)]


def test_a_copy_is_due_once_a_day(history: History, path: Path) -> None:
    assert is_due(path)
    copy = history.keep_daily()
    assert not is_due(path)
    for age, due in ((DAY - 60, False), (DAY + 60, True), (9 * DAY, True), (-60, True)):
        now = copy.stat().st_ctime - age
        os.utime(copy, (now, now))
        assert is_due(path) == due, age


# ------------------------------------------------------------------------------------------------------------ damage


def test_a_row_that_leads_nowhere_is_damage(history: History, path: Path) -> None:
    history._db.conn.execute("pragma foreign_keys=off")
    history._db.table("attempts").insert({"checkpoint": 7, "started_at": "now"})
    with History(path) as reader, pytest.raises(Damaged, match="attempts leads to no row of checkpoints") as raised:
        reader.check_all()
    assert "backups" in raised.value.hint


def test_an_index_that_lacks_a_row_is_damage(path: Path) -> None:
    with History(path, write=True) as history:
        for k in range(200):
            history.checkpoints.add(SIGHTING, "held", Reason("code", f"{k}", "", ""))
        (root,) = history._db.conn.execute(
            "select rootpage from sqlite_master where name = 'idx_checkpoints_digest'"
        ).fetchone()
        history.tidy()
    data = bytearray(path.read_bytes())
    page = slice((root - 1) * 4096, root * 4096)
    assert data[page.start] == 10  # a leaf of an index
    cells = int.from_bytes(data[page.start + 3 : page.start + 5])
    data[page.start + 3 : page.start + 5] = (cells - 1).to_bytes(2)
    path.write_bytes(data)
    with History(path) as reader, pytest.raises(Damaged):
        reader.check_all()
