"""The intake: from sightings to rows; what settles, what is blocked, what vanishes, and what comes back."""

import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from support.commands import eventually
from support.merges import Sandbox
from support.models import save_lone, save_model

from mergd.daemon.base import examine
from mergd.daemon.hashing import Hasher
from mergd.daemon.intake import Intake
from mergd.daemon.progress import Progress
from mergd.plugins.sources.directory import Directory
from mergd.state.history import History
from mergd.state.records import FileStamp


class Watch:
    """A watched folder, a history and an intake, without a loop."""

    def __init__(self, merge: Sandbox, history: History) -> None:
        self.merge, self.history = merge, history
        self.source = Directory(merge.watch)
        self.woken = threading.Event()
        self.intake = Intake(examine(merge.base, Progress()), history, merge.settings, self.woken.set)

    def see(self, quiet: float = 0.0, **settings: Any) -> float | None:
        """Scan once, where files are quiet after so many seconds."""
        self.intake.settings = self.merge.settings.model_copy(update={"quiet": quiet, **settings})
        return self.intake.see(self.source.scan().sightings)

    def states(self) -> dict[str, str]:
        return {row.name: row.state for row in self.history.checkpoints.all()}

    def waits(self) -> list[str]:
        return list(self.intake.waits.values())


@pytest.fixture
def watch(merge: Sandbox) -> Iterator[Watch]:
    with History(merge.store.database, write=True) as history:
        watch = Watch(merge, history)
        yield watch
        watch.intake.close()


def test_what_is_young_settles_and_says_for_how_long(watch: Watch) -> None:
    watch.merge.drop("a", 1)
    wait = watch.see(quiet=60.0)
    assert wait is not None
    assert 50 < wait <= 60
    assert watch.states() == {"a": "settling"}
    assert watch.waits() == ["no change for 60 s"]
    assert watch.see() is None
    assert watch.states() == {"a": "ready"}
    assert watch.waits() == []


def test_what_changes_settles_again(watch: Watch) -> None:
    place = watch.merge.drop("a", 1)
    watch.see()
    save_lone(place / "model.safetensors", watch.merge.fine_tuned(2))
    assert watch.see(quiet=60.0) is not None
    assert watch.states() == {"a": "settling"}
    assert len(watch.history.checkpoints.all()) == 1


def test_what_is_in_several_files_waits_for_all_of_them(watch: Watch) -> None:
    place = watch.merge.drop("a", 1)
    (place / "model.safetensors").rename(watch.merge.root / "kept")
    assert watch.see() is None
    assert watch.states() == {"a": "settling"}
    assert watch.waits() == ["model.safetensors or model.safetensors.index.json"]
    (watch.merge.root / "kept").rename(place / "model.safetensors")
    watch.see()
    assert watch.states() == {"a": "ready"}


@pytest.mark.parametrize(
    "mark", ["x.tmp", "model.safetensors.part", "x.incomplete", ".model.safetensors.Xy12", "x.aria2", "x.crdownload"]
)
def test_what_a_copy_in_progress_leaves_is_waited_for(watch: Watch, mark: str) -> None:
    place = watch.merge.drop("a", 1)
    (place / mark).touch()
    assert watch.see() is None
    assert watch.waits() == [f"{mark} to be finished"]
    (place / mark).unlink()
    watch.see()
    assert watch.states() == {"a": "ready"}


@pytest.mark.parametrize(
    "name", [".hidden", "a.tmp", "b~", "c.partial", "tmp-checkpoint-5", "lost+found", "~syncthing~x.tmp"]
)
def test_what_is_named_as_no_checkpoint_is_not_seen(watch: Watch, name: str) -> None:
    save_model(watch.merge.watch / name, watch.merge.fine_tuned(1))
    (watch.merge.watch / "notes.txt").touch()
    watch.see()
    assert watch.states() == {}


def test_what_cannot_be_read_is_blocked_until_it_can_be(watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    place = watch.merge.drop("a", 1)
    real = os.open

    def not_permitted(path: str | Path, *arguments: int, **options: int) -> int:
        if str(path).startswith(str(place)):
            raise PermissionError(13, "Permission denied", path)
        return real(path, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", not_permitted)
        for _ in range(2):
            assert watch.see() is None
            (row,) = watch.history.checkpoints.all()
            assert (row.state, row.reasons[0].code) == ("blocked", "cannot-read")
            assert "mode 0" in row.reasons[0].found
            assert "chmod" in row.reasons[0].next_step
    watch.see()
    assert watch.states() == {"a": "ready"}


def test_a_folder_that_cannot_be_entered_is_blocked(watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    place = watch.merge.drop("a", 1)

    def refuses(call: Callable[..., Any]) -> Callable[..., Any]:
        def asked(path: Any, *arguments: Any, **options: Any) -> Any:
            if Path(path) == place or place in Path(path).parents:
                raise PermissionError(13, "Permission denied", str(path))
            return call(path, *arguments, **options)

        return asked

    is_folder = os.stat(place)
    for name in ("listdir", "open", "scandir"):
        monkeypatch.setattr(os, name, refuses(getattr(os, name)))
    stat = refuses(os.stat)
    monkeypatch.setattr(os, "stat", lambda path, **more: is_folder if path == place else stat(path, **more))
    for _ in range(2):
        watch.see()
        assert watch.states() == {"a": "blocked"}


@pytest.mark.parametrize("what", ["a pipe", "a socket"])
def test_what_is_named_as_a_checkpoint_and_is_no_file_stops_nobody(watch: Watch, what: str) -> None:
    strange = watch.merge.watch / "a.safetensors"
    if what == "a pipe":
        os.mkfifo(strange)
    else:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(strange))
    watch.merge.drop("b", 1)
    watch.see()
    states = watch.states()
    assert states.pop("b") == "ready"
    assert states in ({}, {"a.safetensors": "refused"})


def test_what_is_gone_has_vanished_and_may_come_back(watch: Watch) -> None:
    watch.merge.drop("a", 1)
    watch.merge.drop("b", 2)
    watch.see()
    watch.merge.remove("a")
    watch.see()
    assert watch.states() == {"a": "vanished", "b": "ready"}
    watch.merge.drop("a", 1)
    watch.see()
    assert watch.states() == {"a": "ready", "b": "ready"}
    assert [row.name for row in watch.history.checkpoints.ready()] == ["b", "a"]  # it is last now: it was not there


def test_a_refused_checkpoint_is_looked_at_again_only_when_it_changes(watch: Watch) -> None:
    model = watch.merge.fine_tuned(1)
    del model["layer.matrix.bias"]
    place = watch.merge.drop("a", model)
    watch.see()
    (row,) = watch.history.checkpoints.all()
    watch.see()
    assert watch.history.checkpoints.all() == [row]
    assert row.state == "refused"
    save_lone(place / "model.safetensors", watch.merge.fine_tuned(1))
    watch.see()
    assert watch.states() == {"a": "ready"}


def test_ready_ones_are_ordered_by_name_where_they_were_seen_together(watch: Watch) -> None:
    for name in ("c", "a", "b"):
        watch.merge.drop(name, ord(name))
    watch.see()
    watch.merge.drop("0", 9)
    watch.see()
    assert [row.name for row in watch.history.checkpoints.ready()] == ["a", "b", "c", "0"]


# ------------------------------------------------------------------------------------------------- evidence and runs


def test_what_somebody_writes_settles_until_nobody_does(watch: Watch) -> None:
    place = watch.merge.drop("a", 1)
    with (place / "model.safetensors").open("ab"):
        assert watch.see() is None  # no clock ends that
        assert watch.waits() == ["nobody to write model.safetensors"]
    watch.see()
    assert watch.states() == {"a": "ready"}


def test_a_manifest_is_waited_for_only_until_the_files_are_hashed(watch: Watch) -> None:
    place = watch.merge.drop("a", 1)
    write_sums(place)
    assert watch.see(quiet=60.0) is None
    assert watch.waits() == ["model.safetensors to be hashed, for SHA256SUMS"]
    eventually(lambda: watch.woken.is_set() and not watch.intake.hashing)
    assert watch.see(quiet=60.0) is None
    assert watch.states() == {"a": "ready"}


def test_a_file_is_hashed_once_for_as_long_as_it_is_the_same(watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[str] = []
    real = Hasher._digest

    def noting(hasher: Hasher, path: str, stamp: FileStamp) -> str | None:
        hashed.append(path)
        return real(hasher, path, stamp)

    monkeypatch.setattr(Hasher, "_digest", noting)
    place = watch.merge.drop("a", 1)
    write_sums(place)
    weights = place / "model.safetensors"
    save_lone(weights, watch.merge.fine_tuned(2))
    for _ in range(3):
        watch.see()
        eventually(lambda: not watch.intake.hashing)
    assert watch.waits() == ["model.safetensors to have the digest that SHA256SUMS lists"]
    assert hashed == [str(weights)]
    save_lone(weights, watch.merge.fine_tuned(1))
    watch.see()
    eventually(lambda: not watch.intake.hashing)
    watch.see()
    assert watch.states() == {"a": "ready"}
    assert len(hashed) == 2


def write_sums(place: Path) -> None:
    done = subprocess.run(["sha256sum", "model.safetensors"], cwd=place, capture_output=True, check=True)
    (place / "SHA256SUMS").write_bytes(done.stdout)


def test_hashing_stops_in_the_middle_of_a_file(watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, real = threading.Event(), os.read

    def endless(fd: int, nbytes: int) -> bytes:
        begun.set()
        return real(fd, nbytes) or b"more"

    place = watch.merge.drop("a", 1)
    write_sums(place)
    monkeypatch.setattr("mergd.daemon.hashing.os.read", endless)
    watch.see()
    assert begun.wait(10)
    watch.intake.close()  # returns


def test_what_settles_for_a_day_is_told_of_once(
    watch: Watch, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = watch.merge.drop("a", 1)
    (place / "x.part").touch()
    watch.see()
    assert "has been settling" not in caplog.text
    monkeypatch.setattr("mergd.daemon.intake.STUCK", timedelta(seconds=-1))
    for _ in range(3):
        watch.see()
    assert caplog.text.count("has been settling") == 1
    assert "x.part to be finished" in caplog.text


def test_the_steps_of_a_run_wait_and_say_for_what(watch: Watch) -> None:
    for step in (500, 1000):
        place = save_model(watch.merge.watch / "alpha" / f"checkpoint-{step}", watch.merge.fine_tuned(step))
        (place / "trainer_state.json").write_text("{}")
    assert watch.see(run_quiet=1800.0) is None
    assert watch.waits() == [
        "nothing: of run alpha alpha/checkpoint-1000 counts instead",
        "run alpha to be quiet for 30 min; a later step counts instead",
    ]
    watch.see(run_quiet=0.0)
    assert watch.states() == {"alpha/checkpoint-500": "settling", "alpha/checkpoint-1000": "ready"}
    shutil.rmtree(watch.merge.watch / "alpha" / "checkpoint-500")  # as save_total_limit does
    watch.see(run_quiet=0.0)
    assert watch.states() == {"alpha/checkpoint-500": "vanished", "alpha/checkpoint-1000": "ready"}
