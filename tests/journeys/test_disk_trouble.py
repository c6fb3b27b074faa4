"""A disk that is full, or fails: the checkpoint waits and is not to blame, what reads it says so, and work goes on by itself."""

import errno
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.merges import Sandbox, make_merge
from support.models import save_lone, tiny_base

from mergd.daemon.requests import Pause, Publish, Remerge, Rollback
from mergd.plugins import registry
from mergd.plugins.rules.batch_interface import is_batch
from mergd.state.errors import Unavailable, Uncertain
from mergd.state.history import History
from mergd.state.store import BALLAST


def outcomes(merge: Sandbox) -> list[str | None]:
    """Return how all attempts ended."""
    with History(merge.store.database) as history:
        rows = history.checkpoints.all()
        return [attempt.outcome for row in rows for attempt in history.checkpoints.attempts(row.id)]


def trouble_of(merge: Sandbox) -> str:
    """Fold what there is, and return what kept it from going on."""
    with merge.loop() as loop:
        loop.post("rescan")
        loop.run(until=loop.idle)
        return loop.trouble


def failing(real: Callable[..., Any], number: int, at: Callable[[str], bool] = lambda path: True) -> Callable[..., Any]:
    """Return a call on a descriptor that fails, where the descriptor's path is such a one."""

    def call(fd: int, *rest: Any) -> Any:
        if at(os.readlink(f"/proc/self/fd/{fd}")):
            raise OSError(number, os.strerror(number))
        return real(fd, *rest)

    return call


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("file", ["slots-00001", "model.safetensors", "manifest.json"])
def test_a_write_without_room_pauses_with_the_numbers(
    merge: Sandbox, monkeypatch: pytest.MonkeyPatch, file: str, number: int
) -> None:
    merge.drop("a", 1)
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", failing(os.write, number, lambda path: file in path))
        said = trouble_of(merge)
    assert said.startswith("paused: disk full: a version needs ")
    assert " bytes, " in said
    assert (merge.states(), outcomes(merge)) == ({"a": "ready"}, ["abandoned"])
    assert not list((merge.state / "drafts").iterdir())
    assert (trouble_of(merge), merge.states()) == ("", {"a": "folded"})


@pytest.mark.parametrize("number", [errno.EIO, errno.EROFS])
def test_a_disk_that_takes_no_writes_is_no_fault_of_a_checkpoint(
    merge: Sandbox, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    merge.drop("a", 1)
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", failing(os.write, number, lambda path: "/drafts/" in path))
        for _ in range(4):  # more often than a checkpoint may strike
            assert "the disk fails" in trouble_of(merge)
    assert (merge.states(), outcomes(merge)) == ({"a": "ready"}, ["abandoned"] * 4)
    assert (trouble_of(merge), merge.states()) == ("", {"a": "folded"})


def test_a_checkpoint_that_the_disk_cannot_read_waits_and_those_behind_it_go_on(
    merge: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    merge.drop("a", 1)
    merge.drop("b", 2)
    with monkeypatch.context() as patch:
        patch.setattr(os, "preadv", failing(os.preadv, errno.EIO, lambda path: "/watch/a/" in path))
        assert trouble_of(merge) == ""
    assert merge.states() == {"a": "ready", "b": "folded"}
    assert sorted(map(str, outcomes(merge))) == ["abandoned", "folded"]
    merge.fold_all()
    assert merge.states() == {"a": "folded", "b": "folded"}


def test_headers_that_the_disk_cannot_read_are_read_another_time(
    merge: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    merge.drop("a", 1)
    with monkeypatch.context() as patch:
        patch.setattr(os, "pread", failing(os.pread, errno.EIO, lambda path: "/watch/a/" in path))
        assert trouble_of(merge) == ""
        assert merge.states() == {"a": "settling"}
    merge.fold_all()
    assert merge.states() == {"a": "folded"}


def test_slots_of_the_head_that_the_disk_cannot_read_are_no_fault_of_a_checkpoint(
    merge: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    merge.drop("a", 1)
    merge.fold_all()
    merge.drop("b", 2)
    with monkeypatch.context() as patch:
        patch.setattr(os, "preadv", failing(os.preadv, errno.EIO, lambda path: "/versions/" in path))
        merge.fold_all()
    assert outcomes(merge) == ["folded", "abandoned"]
    (version,) = merge.versions()
    assert version.damaged == "versions/000001/slots-00001.safetensors"
    assert merge.states() == {"a": "folded", "b": "ready"}  # and folding is paused until somebody has looked
    assert merge.mergd("verify").code == 0
    assert merge.mergd("resume").code == 0
    merge.fold_all()
    assert merge.states() == {"a": "folded", "b": "folded"}


def test_after_a_sync_that_failed_the_same_file_is_never_synced_again(
    merge: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel may have dropped what was not written, and a second sync would say that all is well (PostgreSQL, 2018)."""
    merge.drop("a", 1)
    real, synced, kept = os.fsync, list[int](), list[int]()

    def sync(fd: int) -> None:
        status = os.fstat(fd)
        synced.append(status.st_ino)
        if len(synced) == failing_one:
            kept.append(os.dup(fd))  # so that no other file gets its number
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(fd)

    monkeypatch.setattr(os, "fsync", sync)
    failing_one = 0
    for failing_one in range(1, 100):
        synced.clear()
        folder = trouble_of(merge) == "" or os.path.isdir(f"/proc/self/fd/{kept[-1]}")
        again = synced[failing_one:]
        assert folder or synced[failing_one - 1] not in again
        assert folder or not again, "the attempt went on"
        if merge.states() == {"a": "folded"}:
            break
    for fd in kept:
        os.close(fd)
    assert len(kept) > 5
    assert set(outcomes(merge)) == {"abandoned", "folded"}


def full_error(code: int, name: str) -> sqlite3.OperationalError:
    error = sqlite3.OperationalError(name)
    error.sqlite_errorcode = code
    return error


def test_a_commit_without_room_changes_nothing_and_the_checkpoint_waits(
    merge: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    merge.drop("a", 1)
    merge.fold_all()
    merge.drop("b", 2)
    with monkeypatch.context() as patch:
        tight(patch)
        said = trouble_of(merge)
    assert said.startswith("paused: disk full: a version needs ")
    assert (merge.states(), outcomes(merge)) == ({"a": "folded", "b": "ready"}, ["folded", "abandoned"])
    assert sorted(os.listdir(merge.store.models)) == ["000001", "current"]
    assert sorted(os.listdir(merge.store.versions)) == ["000001"]
    merge.fold_all()
    assert [entry["checkpoint"]["name"] for entry in merge.log()] == ["b", "a"]


def tight(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let SQLite find no page more in the transaction that commits a fold, as on a full disk."""
    real = History._insert

    def insert(history: History, *arguments: Any) -> None:
        real(history, *arguments)
        connection = history._db.conn
        (pages,) = connection.execute("pragma page_count").fetchone()
        connection.execute(f"pragma max_page_count = {pages}")
        try:
            connection.execute("create table more as select zeroblob(100000) as x")
        finally:
            connection.execute("pragma max_page_count = 1073741823")

    monkeypatch.setattr(History, "_insert", insert)


@pytest.mark.parametrize("counts", [True, False])
def test_a_commit_of_which_nobody_knows_ends_the_daemon_and_the_next_start_finds_out(
    merge: Sandbox, monkeypatch: pytest.MonkeyPatch, counts: bool
) -> None:
    merge.drop("a", 1)
    real = History.commit_fold

    def unknown(history: History, *arguments: Any) -> None:
        if counts:
            real(history, *arguments)
        raise full_error(sqlite3.SQLITE_IOERR_FSYNC, "disk I/O error")

    with monkeypatch.context() as patch:
        patch.setattr(History, "commit_fold", unknown)
        with pytest.raises(Uncertain) as raised:
            merge.fold_all()
    assert raised.value.exit_code == 74
    merge.fold_all()
    assert merge.states() == {"a": "folded"}
    assert [version.number for version in merge.versions()] == [1]
    assert merge.mergd("verify").code == 0


@pytest.mark.parametrize("request_", [Rollback(version="v1"), Pause()], ids=["rollback", "pause"])
def test_a_person_is_given_the_ballast(
    merge: Sandbox, monkeypatch: pytest.MonkeyPatch, request_: Rollback | Pause
) -> None:
    for name, seed in (("a", 1), ("b", 2)):
        merge.drop(name, seed)
    merge.fold_all()
    assert merge.store.ballast.stat().st_blocks * 512 >= BALLAST
    real = History.record_request

    def tight(history: History, *arguments: Any) -> int:
        if merge.store.ballast.exists():
            raise full_error(sqlite3.SQLITE_FULL, "database or disk is full")
        return real(history, *arguments)

    monkeypatch.setattr(History, "record_request", tight)
    with merge.loop() as loop:
        loop.ask(request_)
        assert not merge.store.ballast.exists()
    with merge.loop():
        assert merge.store.ballast.exists(), "it is taken again"


def test_a_rollback_whose_link_cannot_move_says_so_and_asking_again_moves_it(
    merge: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, seed in (("a", 1), ("b", 2)):
        merge.drop(name, seed)
    merge.fold_all()

    def symlink(*arguments: Any) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(os, "symlink", symlink)
        with merge.loop() as loop, pytest.raises(Exception, match="the head is v1 now, but"):
            loop.ask(Rollback(version="v1"))
    assert merge.store.pointed() == 2
    assert merge.mergd("rollback", "v1").code == 0
    assert merge.store.pointed() == 1


def test_files_that_cannot_be_deleted_are_deleted_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    merge = make_merge(tmp_path, keep_last=1, keep_within=0)
    merge.drop("a", 1)
    merge.fold_all()
    real = Path.rename

    def rename(path: Path, target: Path) -> Path:
        if "dropped-" in str(target):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(path, target)

    with merge.loop() as loop:
        for name, seed in (("b", 2), ("c", 3)):
            merge.drop(name, seed)
        with monkeypatch.context() as patch:
            patch.setattr(Path, "rename", rename)
            loop.post("rescan")
            loop.run(until=loop.idle)
        assert merge.store.model(1).exists()
        loop.post("upkeep")
        loop.run(until=lambda: not merge.store.model(1).exists())
    assert set(merge.states().values()) == {"folded"}


def test_the_need_counts_what_is_spilled_and_what_lies_beside(
    tmp_path: Path, their_news: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A draft never takes more than was asked for before its first byte, whatever the rule."""
    for rule in (name for name in registry.names("rules") if not is_batch(registry.load("rules", name))):
        merge = make_merge(tmp_path / rule, tiny_base(), rule=rule)
        (merge.base / "tokenizer.json").write_text("{}" * 50_000)
        place = merge.drop("a", 1)
        save_lone(place / "fisher.safetensors", {n: t.abs() for n, t in merge.model.items() if t.is_floating_point()})
        most = 0
        with merge.loop() as loop:
            need = loop._work.worker.disk.need
            real = loop._work._drafting._seal

            def seal(*arguments: Any, real: Any = real, merge: Sandbox = merge) -> Any:
                nonlocal most
                most = sum(path.stat().st_size for path in (merge.state / "drafts").rglob("*") if path.is_file())
                return real(*arguments)

            monkeypatch.setattr(loop._work._drafting, "_seal", seal)
            loop.post("rescan")
            loop.run(until=loop.idle)
        assert 0 < most < need + 20_000, rule  # headers and the manifest are small change of the reserve
        assert most > need, rule


# ------------------------------------------------------------------------------------------------------ people's tasks


@pytest.mark.parametrize("request_", [Publish(scale=2.0), Remerge(rule="average")])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_who_asks_for_a_version_that_cannot_be_written_is_told_and_it_is_made_later(
    merge: Sandbox, monkeypatch: pytest.MonkeyPatch, request_: Publish | Remerge, number: int
) -> None:
    merge.drop("a", 1)
    merge.fold_all()
    with monkeypatch.context() as patch, merge.loop() as loop:
        patch.setattr(os, "write", failing(os.write, number, lambda path: "slots-00001" in path))
        with pytest.raises(Unavailable) as raised:
            loop.ask(request_)
        assert "it is written down" in raised.value.hint
        assert not loop._work.waits(), "it would be tried again and again"
    assert len(merge.versions()) == 1
    merge.fold_all()
    assert len(merge.versions()) == 2


def test_a_task_is_not_begun_again_and_again_while_the_history_takes_no_writes(
    merge: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    merge.drop("a", 1)
    merge.fold_all()

    def full(*arguments: object) -> int:
        raise full_error(sqlite3.SQLITE_FULL, "database or disk is full")

    with merge.loop() as loop, monkeypatch.context() as patch:
        patch.setattr(loop._history.tasks, "begin", full)
        with pytest.raises(Unavailable):
            loop.ask(Publish(scale=2.0))
        assert not loop._work.waits()
    merge.fold_all()
    assert len(merge.versions()) == 2
