"""What goes wrong around the way: bad words, a lost base model, a full disk, an old database, a link that cannot move."""

import errno
import json
import os
import shutil
import signal
import sqlite3
from pathlib import Path

import pytest
from support.commands import eventually, mergd
from support.merges import Sandbox, make_merge
from support.models import fine_tuned, save_model, tiny_base

from mergd.daemon.requests import Fold
from mergd.plugins import registry
from mergd.state.errors import Damaged, DiskFull, MergdError, Misconfigured, Unavailable
from mergd.state.history import History
from mergd.state.store import Store


def status_head(merge: Sandbox) -> int | None:
    head: int | None = json.loads((merge.state / "status.json").read_text())["head"]
    return head


@pytest.mark.parametrize("word", ["~no-such-user-here/x", "x" * 300], ids=["user", "long"])
def test_a_word_that_is_no_path_is_answered_and_the_daemon_goes_on(merge: Sandbox, word: str) -> None:
    with merge.running("run") as daemon:
        eventually(lambda: (merge.state / "control.sock").exists())
        asked = merge.mergd("fold", word)
        assert asked.code == 2, asked.err
        assert len(asked.complaint) <= 2
        merge.drop("b", 1)
        eventually(lambda: status_head(merge) == 1)
        daemon.send(signal.SIGTERM)
        assert daemon.ended().code == 0


def test_a_reload_that_cannot_read_the_history_keeps_the_old_configuration_and_says_so(
    merge: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*names: str) -> None:
        error = sqlite3.OperationalError("database or disk is full")
        error.sqlite_errorcode = sqlite3.SQLITE_FULL
        raise error

    kept: list[MergdError] = []
    with merge.loop() as loop:
        before, loop.kept = loop.settings, kept.append
        with monkeypatch.context() as patch:
            patch.setattr(loop._history, "pins", full)
            loop.post("reload")
            loop.turn()
        assert loop.settings is before
    assert [type(error) for error in kept] == [DiskFull]


def test_a_plugin_that_cannot_be_made_is_the_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise KeyError("TOKEN")

    monkeypatch.setattr(registry, "load", lambda group, name: broken)
    with pytest.raises(Misconfigured, match="the gate 'mine' cannot be made: 'TOKEN'"):
        registry.make("gates", "mine")


def test_what_is_going_on_is_told_without_the_history_too(merge: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise sqlite3.OperationalError("disk I/O error")

    with merge.loop() as loop, monkeypatch.context() as patch:
        patch.setattr(loop._history, "paused", fail)
        assert loop.brief == "the history cannot be read: disk I/O error"


def test_a_configuration_that_is_gone_at_sighup_is_not_taken(merge: Sandbox) -> None:
    with merge.running("run") as daemon:
        eventually(lambda: (merge.state / "control.sock").exists())
        merge.config.rename(merge.root / "aside.toml")
        daemon.send(signal.SIGHUP)
        eventually(lambda: "is not taken" in daemon.err)
        daemon.send(signal.SIGTERM)
        assert daemon.ended().code == 0


def test_a_rollback_needs_neither_base_model_nor_watched_folder(merge: Sandbox) -> None:
    for seed in (1, 2):
        merge.drop(f"c{seed}", seed)
        merge.fold_all()
    shutil.rmtree(merge.base)
    shutil.rmtree(merge.watch)
    assert merge.mergd("rollback", "v1").code == 0
    assert merge.store.pointed() == 1
    assert status_head(merge) == 1
    assert merge.mergd("pause").code == 0


def test_an_older_database_removes_no_newer_version(merge: Sandbox) -> None:
    database = merge.store.database
    old = database.read_bytes()
    for seed in (1, 2, 3):
        merge.drop(f"c{seed}", seed)
    merge.fold_all()
    database.write_bytes(old)
    with pytest.raises(Damaged, match="versions up to 3"):
        merge.fold_all()
    assert sorted(path.name for path in merge.store.versions.iterdir()) == ["000001", "000002", "000003"]


def test_a_rollback_that_is_asked_for_again_after_a_crash_brings_the_link_along(merge: Sandbox) -> None:
    merge.drop("a", 1)
    merge.drop("b", 2)
    merge.fold_all()
    with History(merge.store.database, write=True) as history:
        history.move_head(1, "somebody", "rollback", [])  # and then it was killed
    assert os.readlink(merge.store.current) == "000002"
    assert merge.mergd("rollback", "v1").code == 0
    assert os.readlink(merge.store.current) == "000001"


def test_a_command_without_a_daemon_makes_good_what_a_crash_left(merge: Sandbox) -> None:
    for name, seed in (("a", 1), ("b", 2), ("c", 3)):
        merge.drop(name, seed)
    merge.fold_all()
    with History(merge.store.database, write=True) as history:
        history.drop_files(1, "model")  # and then it was killed
    (merge.state / "drafts" / "dropped-000001").mkdir()
    assert merge.mergd("gc").code == 0
    assert not merge.store.model(1).exists()
    assert not list((merge.state / "drafts").iterdir())


def test_what_comes_back_after_a_rollback_leaves_its_first_version_as_it_was(merge: Sandbox) -> None:
    for seed in (1, 2):
        merge.drop(f"c{seed}", seed)
        merge.fold_all()
    before = merge.log()[0]
    merge.mergd("rollback", "v1")
    assert merge.mergd("fold", "--again", "c2").code == 0
    save_model(merge.watch / "c2", fine_tuned(tiny_base(), 9))  # other content at the same place
    merge.fold_all()
    (after,) = [entry for entry in merge.log() if entry["version"] == 2]
    assert after["checkpoint"] == before["checkpoint"]
    assert [entry["parent"] for entry in merge.log()] == [1, 1, None]


def test_a_link_that_cannot_move_is_moved_later_and_nothing_is_folded_twice(
    merge: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    merge.drop("a", 1)

    def full(store: Store, number: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Store, "point", full)
        rows = merge.fold_all()
    assert [(row.name, row.state, row.duplicate_of) for row in rows] == [("a", "folded", None)]
    assert merge.store.pointed() is None
    merge.fold_all()
    assert merge.store.pointed() == 1
    assert len(merge.versions()) == 1


def test_a_fold_that_is_asked_for_on_a_full_disk_is_answered_and_stays_queued(
    merge: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = merge.drop("a", 1)
    monkeypatch.setattr("mergd.daemon.disk.RESERVE", 2**60)
    with merge.loop() as loop, pytest.raises(Unavailable, match="disk full"):
        loop.ask(Fold(checkpoints=(str(place),)))
    assert merge.states() == {"a": "ready"}
    monkeypatch.undo()
    merge.fold_all()
    assert merge.states() == {"a": "folded"}


def test_strict_counts_what_the_headers_refuse_too(merge: Sandbox) -> None:
    save_model(merge.watch / "bad", {"layer.matrix.weight": tiny_base()["layer.matrix.weight"]})
    assert merge.mergd("run", "--once", "--strict").code == 65


def test_settings_and_parameters_can_be_set_at_init(tmp_path: Path) -> None:
    model = make_merge(tmp_path / "first")
    other = ["--watch", model.watch, "--state", tmp_path / "s", "--config", tmp_path / "c.toml"]
    chosen = ["--set", "alpha=0.4", "--set", "variant=paper", "--set", "out_dtype=bfloat16", "--set", "quiet=0s"]
    made = mergd("init", "--base", model.base, *other, *chosen, at=tmp_path)
    assert made.code == 0, made.err
    with History(tmp_path / "s" / "mergd.db") as history:
        pins = history.pins()
    assert pins["parameters"] == {"alpha": 0.4, "variant": "paper", "others": "sum"}
    assert pins["out_dtype"] == "bfloat16"
    assert mergd("run", "--once", "-c", tmp_path / "c.toml", at=tmp_path).code == 0
    wrong = mergd("init", "--base", model.base, *other[:2], "--state", tmp_path / "t", "--set", "alpha", at=tmp_path)
    assert wrong.code == 2


def test_a_gate_is_not_asked_about_content_that_counts_already(merge: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    merge.drop("a", 1)
    merge.fold_all()
    merge.drop("b", 1)

    def published(*arguments: object) -> None:
        raise AssertionError("it was published")

    monkeypatch.setattr("mergd.daemon.drafting.publish", published)
    merge.fold_all()
    assert [row.state for row in merge.checkpoints()] == ["folded", "folded"]


def test_mergd_does_not_fold_its_own_models(merge: Sandbox) -> None:
    merge.drop("a", 1)
    merge.fold_all()
    assert merge.mergd("fold", merge.store.current).code == 2


def test_a_plugin_that_cannot_be_imported_is_the_operators_to_mend(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(point: object) -> None:
        raise ImportError("no module named x")

    monkeypatch.setattr("importlib.metadata.EntryPoint.load", broken)
    with pytest.raises(Misconfigured, match="cannot be loaded"):
        registry.load("rules", "opcm")


def test_others_may_read_all_of_a_published_model_whatever_the_umask(merge: Sandbox) -> None:
    (merge.base / "1_Pooling" / "deeper").mkdir(parents=True)
    (merge.base / "1_Pooling" / "deeper" / "config.json").write_text("{}")
    merge.drop("a", 1)
    umask = os.umask(0o077)
    try:
        merge.fold_all()
    finally:
        os.umask(umask)
    places = [merge.store.model(1), *merge.store.model(1).rglob("*")]
    assert {(path.is_dir(), path.stat().st_mode & 0o777) for path in places} == {(True, 0o755), (False, 0o444)}
    assert (merge.store.current / "1_Pooling" / "deeper" / "config.json").exists()
