"""The daily upkeep: once a day the database is looked at whole and copied, aside; damage ends the daemon, a full disk does not."""

import logging
import os
import signal
import sqlite3
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from apscheduler.schedulers.background import BackgroundScheduler
from support.commands import eventually
from support.merges import Sandbox

from mergd.daemon.service import JOB
from mergd.state import backups
from mergd.state.backups import DAY, folder_of
from mergd.state.errors import Damaged
from mergd.state.history import History


def copies(merge: Sandbox) -> list[str]:
    """Return the daily copies."""
    folder = folder_of(merge.store.database)
    return sorted(os.listdir(folder)) if folder.exists() else []


def look(merge: Sandbox, times: int = 1) -> None:
    """Have a loop look after its database."""
    with merge.loop() as loop:
        for _ in range(times):
            loop.post("upkeep")
            loop.run(until=loop.idle)


def age(merge: Sandbox, seconds: float) -> None:
    """Let the newest copy be so old."""
    copy, now = folder_of(merge.store.database) / "mergd.db", time.time()
    os.utime(copy, (now - seconds, now - seconds))


def test_the_database_is_copied_once_a_day(merge: Sandbox) -> None:
    look(merge, times=3)
    assert copies(merge) == ["mergd.db"]
    age(merge, 9 * DAY)  # the machine slept for nine days
    look(merge, times=3)
    assert copies(merge) == ["mergd-1.db", "mergd.db"]


@pytest.mark.parametrize("words", [["run"], ["run", "--once"]])
def test_it_is_done_by_a_daemon_and_from_cron(merge: Sandbox, words: list[str]) -> None:
    with merge.running(*words) as command:
        eventually(lambda: copies(merge) == ["mergd.db"])
        if words == ["run"]:
            command.send(signal.SIGTERM)
        assert command.ended().code == 0
    with History(folder_of(merge.store.database) / "mergd.db", write=True) as history:
        assert history.pins()["rule"] == merge.settings.rule


def spoil(database: Path) -> None:
    """Write a row that leads nowhere: the quick look at the start does not see it."""
    db = sqlite3.connect(database)
    db.execute("insert into attempts (checkpoint, started_at) values (7, 'now')")
    db.commit()
    db.close()


def test_damage_ends_the_daemon_and_replaces_no_copy(merge: Sandbox) -> None:
    look(merge)
    spoil(merge.store.database)
    age(merge, 2 * DAY)
    ended = merge.mergd("run")
    assert ended.code == Damaged.exit_code
    assert len(ended.complaint) == 2
    assert "attempts leads to no row of checkpoints" in ended.complaint[0]
    assert "backups" in ended.complaint[1]
    assert copies(merge) == ["mergd.db"]


def test_a_full_disk_is_told_and_tried_again(
    merge: Sandbox, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(backups, "_sync", full)
        look(merge)
    assert [record.levelno for record in caplog.records if "No space left" in record.message] == [logging.ERROR]
    assert copies(merge) == []
    look(merge)
    assert copies(merge) == ["mergd.db"]


def test_folding_goes_on_meanwhile(merge: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    real = History.check_all

    def slow(history: History) -> None:
        eventually(lambda: merge.states().get("a") == "folded")
        real(history)

    monkeypatch.setattr(History, "check_all", slow)
    merge.drop("a", 1)
    with merge.loop() as loop:
        loop.post("upkeep")
        loop.post("rescan")
        loop.run(until=loop.idle)
    assert copies(merge) == ["mergd.db"]


@pytest.fixture
def clock() -> BackgroundScheduler:
    return BackgroundScheduler(timezone="UTC")


def test_what_was_missed_while_the_machine_slept_is_done_once(clock: BackgroundScheduler) -> None:
    done: list[str] = []
    add: Callable[..., object] = clock.add_job
    slept_since = datetime.now(UTC) - timedelta(days=3)
    add(done.append, "interval", ["upkeep"], hours=1, next_run_time=slept_since, **JOB)
    add(done.append, "interval", ["end"], seconds=0.2, **JOB)
    clock.start()
    eventually(lambda: "end" in done)
    clock.shutdown()
    assert done.count("upkeep") == 1
