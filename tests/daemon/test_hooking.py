"""What the configuration's hooks are told: what is noted when, and whose words are where."""

import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.commands import eventually
from support.merges import Sandbox, make_merge
from support.recorder import Recorder, recording

from mergd.daemon.hooking import Hooking, check_keys, keys_of
from mergd.daemon.settings import Settings
from mergd.daemon.settings_tables import HookSettings
from mergd.state.errors import Misconfigured
from mergd.state.history import History
from mergd.state.records import FileStamp, Reason, Sighting


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    with recording() as recorder:
        yield recorder


@pytest.fixture
def opened(tmp_path: Path, recorder: Recorder) -> Iterator[Callable[..., tuple[Hooking, History]]]:
    """Open the hooks of a merge that has one, and its history."""
    merge = make_merge(tmp_path, hook={"deploy": {"url": recorder.url}})
    history = History(merge.store.database, write=True)
    made = []

    def open_one() -> tuple[Hooking, History]:
        made.append(Hooking(merge.settings, history, merge.store))
        made[-1].open()
        return made[-1], history

    yield open_one
    for hooking in made:
        hooking.close()
    history.close()


def hold(history: History, name: str) -> None:
    """Have something to tell."""
    stamp = FileStamp("model.safetensors", 1, 1, 10, 1, 1)
    history.checkpoints.add(Sighting("directory", f"/watch/{name}", name, (stamp,)), "held", Reason("a", "b", "c", "d"))


def test_all_that_is_owed_is_told_before_a_command_ends(
    opened: Callable[..., tuple[Hooking, History]], recorder: Recorder
) -> None:
    hooking, history = opened()
    for name in ("a", "b", "c"):
        hold(history, name)
    hooking.finish()
    assert [post.json["path"] for post in recorder.posts] == ["/watch/a", "/watch/b", "/watch/c"]
    assert history.notices.standing()["deploy"]["owed"] == 0


def test_a_command_waits_for_no_second_try(opened: Callable[..., tuple[Hooking, History]], recorder: Recorder) -> None:
    recorder.answer = lambda post: 503
    hooking, history = opened()
    hold(history, "a")
    hooking.finish()
    assert len(recorder.posts) == 1
    assert hooking.told()["deploy"]["trouble"] == f"{recorder.url} answered 503"
    assert history.notices.standing()["deploy"]["owed"] == 1


def test_what_there_is_no_room_to_note_is_not_told_twice(
    opened: Callable[..., tuple[Hooking, History]], recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*words: Any) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    hooking, history = opened()
    hold(history, "a")
    assert hooking.turn() is False
    with monkeypatch.context() as patched:
        patched.setattr(history.notices, "told", full)
        eventually(lambda: recorder.posts)
        for _ in range(3):
            with pytest.raises(sqlite3.OperationalError):
                eventually(hooking.turn)
    assert hooking.turn() is True
    assert len(recorder.posts) == 1
    assert history.notices.standing()["deploy"]["done"] == 1


def test_what_was_told_when_all_ends_is_noted(
    opened: Callable[..., tuple[Hooking, History]], recorder: Recorder
) -> None:
    hooking, history = opened()
    hold(history, "a")
    hooking.turn()
    eventually(lambda: recorder.posts)
    hooking.close()
    assert history.notices.standing()["deploy"]["done"] == 1


def test_a_reload_without_room_to_note_what_was_told_is_taken_whole_and_tells_it_again(
    opened: Callable[..., tuple[Hooking, History]], recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*words: Any) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    hooking, history = opened()
    hold(history, "a")
    hooking.turn()
    eventually(lambda: recorder.posts)
    settings = Settings(
        base_model="/base",
        watch=Path("/watch"),
        state=Path("/state"),
        hook={"deploy": HookSettings(url=recorder.url)},
    )
    with monkeypatch.context() as patched:
        patched.setattr(history.notices, "told", full)
        hooking.take(settings)
    assert not hooking.busy
    hooking.finish()
    assert [post.json["path"] for post in recorder.posts] == ["/watch/a"] * 2
    assert history.notices.standing()["deploy"]["owed"] == 0


def test_a_key_is_a_credential_or_a_whole_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "name").write_text("whsec_a2V5")
    relative = HookSettings(url="http://a", secret="name")
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    with pytest.raises(Misconfigured, match="name of a credential, name, and systemd gave none"):
        keys_of(relative)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert keys_of(relative) == [b"key"]
    assert keys_of(HookSettings(url="http://a", secret=str(tmp_path / "name"))) == [b"key"]
    assert keys_of(HookSettings(url="http://a")) == []


def test_every_hooks_key_is_looked_for_before_anything_is_told(tmp_path: Path, merge: Sandbox) -> None:
    one, two = (HookSettings(url="http://a", secret=str(tmp_path / name)) for name in ("good", "bad"))
    (tmp_path / "good").write_text("key")
    settings = merge.settings.model_copy(update={"hook": {"one": one, "two": two}})
    with pytest.raises(Misconfigured, match=str(tmp_path / "bad")):
        check_keys(settings)
