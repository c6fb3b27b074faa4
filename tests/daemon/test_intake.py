"""The intake: from sightings to rows; what settles, what is blocked, what vanishes, and what comes back."""

import errno
import hashlib
import os
import shutil
import socket
import sqlite3
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import pytest
from support.commands import eventually
from support.merges import Sandbox
from support.models import save_lone, save_model

from mergd.daemon import hashing
from mergd.daemon.base import examine
from mergd.daemon.hashing import Hasher
from mergd.daemon.intake import Intake
from mergd.daemon.progress import Progress
from mergd.daemon.requests import AnyRequest, Approve, Retry
from mergd.plugins.sources.directory import Directory
from mergd.plugins.sources.interface import Evidence, Remote
from mergd.state.errors import Unavailable
from mergd.state.headers import open_regular
from mergd.state.history import History
from mergd.state.records import Sighting


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


def test_the_hint_for_what_cannot_be_read_is_safe_to_paste(watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    place = watch.merge.drop("x; touch pwned #", 1)
    file = place / "model.safetensors"
    found = Evidence(unreadable=str(file))
    monkeypatch.setattr("mergd.daemon.intake.evidence.gather", lambda sighting: found)
    watch.see()
    (row,) = watch.history.checkpoints.all()
    assert row.reasons[0].next_step.startswith(f"chmod o+rX '{file}';")


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

    def noting(path: str) -> int:
        hashed.append(path)
        return open_regular(path)

    monkeypatch.setattr(hashing, "open_regular", noting)
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
    begun, ended, real = threading.Event(), threading.Event(), os.pread

    def slow(fd: int, nbytes: int, start: int) -> bytes:
        begun.set()
        ended.wait(0.05)
        return real(fd, 1, start)

    place = watch.merge.drop("a", 1)
    write_sums(place)
    monkeypatch.setattr("mergd.daemon.hashing.os.pread", slow)
    watch.see()
    assert begun.wait(10)
    watch.intake.close()  # returns
    assert watch.intake.hashing is False


def save_sparse(path: Path, nbytes: int) -> None:
    """Write a file that has a size, and no bytes of its own."""
    path.touch()
    os.truncate(path, nbytes)


NO_FILES: dict[str, Callable[[Path], object]] = {
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "a pipe": os.mkfifo,
    "a folder": lambda path: path.mkdir(),
    "far more than the base model": lambda path: save_sparse(path, 2**40),
}


@pytest.mark.parametrize("what", NO_FILES)
def test_what_can_be_hashed_by_nobody_is_tried_once_and_keeps_nobody_waiting(
    watch: Watch, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    bad, good = watch.merge.drop("bad", 1), watch.merge.drop("good", 2)
    NO_FILES[what](bad / "x.safetensors")
    (bad / "SHA256SUMS").write_text(f"{'0' * 64}  x.safetensors\n")
    write_sums(good)
    for _ in range(3):
        watch.see()
        eventually(lambda: not watch.intake.hashing)
    assert watch.states() == {"bad": "settling", "good": "ready"}
    assert watch.waits() == ["x.safetensors to be a file that can be hashed, for SHA256SUMS"]
    assert caplog.text.count("cannot be hashed") == 1


def stamped(path: Path) -> Sighting:
    """Return the sighting of a lone file."""
    sighting = Directory(path.parent).sight(path)
    assert sighting is not None
    return sighting


def test_a_large_file_keeps_no_small_one_waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    large, small = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    save_sparse(large, 8 * hashing.SLICE)
    small.write_bytes(b"x")
    ended: list[str] = []
    hasher = Hasher(lambda: None, 2**40)
    real = hasher._end

    def end(work: Any, digest: str | None) -> None:
        ended.append(work.path)
        real(work, digest)

    monkeypatch.setattr(hasher, "_end", end)
    try:
        sightings = [stamped(path) for path in (large, small)]
        for sighting in sightings:
            hasher.known(sighting, [sighting.name])
        eventually(lambda: not hasher.busy)
        known = [hasher.known(sighting, [sighting.name])[sighting.name] for sighting in sightings]
    finally:
        hasher.close()
    assert ended == [str(small), str(large)]
    assert known == [hashlib.sha256(path.read_bytes()).hexdigest() for path in (large, small)]


def test_digests_are_forgotten_with_their_places_and_when_files_change(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    hasher = Hasher(lambda: None, 2**40)
    try:
        for content in (b"x", b"xy", b"xyz"):
            path.write_bytes(content)
            hasher.known(stamped(path), [path.name])
            eventually(lambda: not hasher.busy)
            assert len(hasher._results[str(path)]) == 1
        hasher.forget(str(path))
        assert hasher._results == {}
    finally:
        hasher.close()


def test_digests_may_be_forgotten_while_others_come(tmp_path: Path) -> None:
    """Two threads, each at full speed: what the one inserts must not trip the other."""
    path = tmp_path / "a.safetensors"
    path.touch()
    one = stamped(path)
    many = replace(one, place=str(tmp_path), stamps=tuple(replace(one.stamps[0], name=f"{k}") for k in range(300)))
    hasher = Hasher(lambda: None, 2**40)
    try:
        for _ in range(20):
            hasher.known(many, {stamp.name for stamp in many.stamps})
            hasher.known(one, [path.name])
            hasher.forget(one.place)
            hasher.forget(many.place)
        eventually(lambda: not hasher.busy)
    finally:
        hasher.close()


def test_an_error_of_those_whom_a_digest_wakes_leaves_nothing_pending(tmp_path: Path) -> None:
    def fail() -> None:
        raise ArithmeticError("a test")

    path = tmp_path / "a.safetensors"
    path.touch()
    hasher = Hasher(fail, 2**40)
    hasher.known(stamped(path), [path.name])
    eventually(lambda: not hasher.busy)
    hasher.close()


# -------------------------------------------------------------------------------------------- errors at a single place


def fails(error: Exception) -> Callable[..., Any]:
    def call(*arguments: Any, **options: Any) -> Any:
        raise error

    return call


FAILING: dict[str, tuple[Exception, str]] = {
    "os.listdir": (OSError(errno.EIO, "Input/output error"), "Input/output error"),
    "mergd.plugins.sources.directory.evidence.on_network": (OSError(errno.ESTALE, "Stale file handle"), "Stale file"),
    "mergd.plugins.sources.directory.manifests.listed": (OSError(errno.EMFILE, "Too many open files"), "Too many"),
    "mergd.daemon.intake.step": (ArithmeticError("a test"), "ArithmeticError: a test"),
    "mergd.daemon.intake.Admission.examine": (ArithmeticError("a test"), "ArithmeticError: a test"),
}


@pytest.mark.parametrize("where", FAILING)
def test_an_error_at_one_place_leaves_it_settling_and_the_others_alone(
    watch: Watch, where: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    watch.merge.drop("bad", 1)
    watch.merge.drop("good", 2)
    error, words = FAILING[where]
    sightings = watch.source.scan().sightings
    with monkeypatch.context() as patch:
        patch.setattr(where, fails(error))
        for _ in range(2):
            watch.intake.see(sightings[:1])
    assert watch.states() == {"bad": "settling"}
    (said,) = watch.waits()
    assert words in said
    assert caplog.text.count("could not be looked at") == isinstance(error, ArithmeticError)
    watch.see()
    assert watch.states() == {"bad": "ready", "good": "ready"}


def test_the_disk_is_asked_for_the_others_when_it_fails_at_one(watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    bad, _ = watch.merge.drop("bad", 1), watch.merge.drop("good", 2)
    real = os.listdir

    def listdir(path: Any) -> list[str]:
        if Path(path) == bad:
            raise OSError(errno.EIO, "Input/output error", str(path))
        return real(path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "listdir", listdir)
        watch.see()
    assert watch.states() == {"bad": "settling", "good": "ready"}
    assert "Input/output error" in watch.waits()[0]


def test_an_error_of_the_history_is_nothing_of_one_place(watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    watch.merge.drop("a", 1)
    monkeypatch.setattr(watch.history.checkpoints, "add", fails(sqlite3.OperationalError("disk I/O error")))
    with pytest.raises(sqlite3.OperationalError):
        watch.see()


@pytest.mark.parametrize("name", [b"x\xff.safetensors", b"x\xff.bin", b".tmp\xff", b"x\xff-00001-of-00002.safetensors"])
def test_a_name_that_is_no_text_ends_nothing(watch: Watch, name: bytes) -> None:
    bad = watch.merge.drop("bad", 1)
    watch.merge.drop("good", 2)
    (Path(os.fsdecode(os.fsencode(bad) + b"/" + name))).touch()
    watch.see()
    states = watch.states()
    assert states["good"] == "ready"
    assert states["bad"] == ("settling" if name == b".tmp\xff" else "ready")


# ---------------------------------------------------------------------------------------------------- rows of a place


def test_content_that_is_touched_again_and_again_takes_two_rows(merge: Sandbox) -> None:
    place = merge.drop("a", 1)
    merge.fold_all()
    for k in range(4):
        os.utime(place / "model.safetensors", ns=(k, k))
        merge.fold_all()
    rows = merge.checkpoints()
    assert [(row.state, row.duplicate_of) for row in rows] == [("folded", None), ("folded", rows[0].id)]
    assert merge.fold_all() == rows
    save_lone(place / "model.safetensors", merge.fine_tuned(2))  # other content is asked about, as ever
    _, row = merge.fold_all()
    assert (row.state, row.reasons[0].code, row.duplicate_of) == ("held", "changed", None)


ELSEWHERE: dict[str, tuple[dict[str, Any], AnyRequest, str]] = {
    "approved": ({"size": 3.0}, Approve(checkpoints=("outside",)), "held"),
    "looked at again": ({"size": 0.1}, Retry(checkpoint="outside"), "refused"),
}


@pytest.mark.parametrize("how", ELSEWHERE)
def test_what_lies_elsewhere_vanishes_only_when_it_is_gone(merge: Sandbox, how: str) -> None:
    """Only a person names it, and it is decided on like all others; no scan sees it."""
    more, request, state = ELSEWHERE[how]
    model = merge.fine_tuned(1, **more)
    outside = save_model(merge.root / "outside", model)
    with History(merge.store.database, write=True) as history:
        row = history.checkpoints.add(stamped(outside), "settling" if state == "held" else "refused")
    if state == "held":
        merge.fold_all()
    assert merge.states() == {"outside": state}
    with merge.loop() as loop:
        loop.ask(request)
        loop.post("rescan")
        loop.run(until=loop.idle)
    assert merge.states() == {"outside": "folded"}
    with History(merge.store.database, write=True) as history:
        history.checkpoints.set_state(row.id, "settling")
    shutil.rmtree(outside)
    merge.fold_all()
    assert merge.states() == {"outside": "vanished"}


# --------------------------------------------------------------------------------------------------------------- runs


def test_an_approved_step_is_not_held_again(watch: Watch) -> None:
    save_step(watch, 500)
    watch.see(run_quiet=0.0)
    save_step(watch, 1000)
    watch.see(run_quiet=0.0)
    row = watch.history.checkpoints.all()[-1]
    assert (row.state, row.reasons[0].code) == ("held", "run-counted")
    watch.history.decided.approve(row, "a test")
    watch.history.checkpoints.set_state(row.id, "settling")  # its fold found the file busy
    watch.see(run_quiet=0.0)
    assert watch.history.checkpoints.get(row.id).state == "ready"


def test_where_the_last_step_is_refused_the_one_before_counts(watch: Watch) -> None:
    save_step(watch, 500)
    model = watch.merge.fine_tuned(2)
    del model["layer.matrix.bias"]
    save_step(watch, 1000, model)
    assert watch.see(run_quiet=0.0) == 0.0
    assert watch.see(run_quiet=0.0) is None
    assert watch.states() == {"alpha/checkpoint-500": "ready", "alpha/checkpoint-1000": "refused"}


class Elsewhere:
    """A source whose checkpoints have their headers here, and wait for room; it records what is to be deleted."""

    name, busy = "hub", False

    def __init__(self, place: Path) -> None:
        self.place = place
        self.left: list[str] = []
        self.looked = 0

    def headers(self, sighting: Sighting, urgent: int | None = None) -> Sighting:
        self.looked += 1
        here = stamped(self.place)
        return replace(sighting, folder=str(self.place), stamps=here.stamps, files="told")

    def choose(self, sighting: Sighting, names: Any) -> Sighting:
        return replace(sighting, files="told")

    def confirm(self, sighting: Sighting) -> None:
        pass

    def content(self, sighting: Sighting, urgent: int | None = None) -> Sighting:
        raise Unavailable("room")

    def leave(self, place: str) -> None:
        self.left.append(place)


@pytest.fixture
def elsewhere(merge: Sandbox) -> Elsewhere:
    return Elsewhere(save_model(merge.root / "brought", merge.fine_tuned(1)))


@pytest.fixture
def intake(merge: Sandbox, elsewhere: Elsewhere) -> Iterator[Intake]:
    with History(merge.store.database, write=True) as history:
        base = examine(merge.base, Progress())
        intake = Intake(base, history, merge.settings, remote=cast(Remote, elsewhere))
        yield intake
        intake.close()


def remote(name: str) -> Sighting:
    return Sighting("hub", f"hf://{name}", name, (), revision="0" * 40)


def test_who_asks_for_a_checkpoint_is_told_what_that_one_waits_for(intake: Intake) -> None:
    for name in ("acme/a", "acme/b"):
        intake.take(remote(name))
    (a, b) = intake._checkpoints.all()
    assert intake.unfetched() == "acme/a waits for room; acme/b waits for room"
    assert intake.unfetched([b.id]) == "acme/b waits for room"
    assert intake.unfetched([]) == ""
    assert a.state == "settling"


def test_what_was_deleted_of_a_checkpoint_is_judged_anew_when_it_is_wanted_again(
    intake: Intake, elsewhere: Elsewhere
) -> None:
    for _ in range(2):
        intake.take(remote("acme/a"))
    assert elsewhere.looked == 1, "headers that fit are looked at once"
    (row,) = intake._checkpoints.all()
    intake._checkpoints.set_state(row.id, "refused")
    intake.take(remote("acme/a"))
    assert elsewhere.left == [row.place]
    intake._checkpoints.set_state(row.id, "settling")
    intake.take(remote("acme/a"))
    assert elsewhere.looked == 2


def save_step(watch: Watch, step: int, model: Any = None) -> Path:
    """Write what a trainer saves at one step."""
    weights = watch.merge.fine_tuned(step) if model is None else model
    place = save_model(watch.merge.watch / "alpha" / f"checkpoint-{step}", weights)
    (place / "trainer_state.json").write_text("{}")
    return place


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
        save_step(watch, step)
    assert watch.see(run_quiet=1800.0) is None
    assert watch.waits() == [
        "nothing: alpha/checkpoint-1000 of the same run counts instead",
        "its run to be quiet for 30 min; a later step counts instead",
    ]
    watch.see(run_quiet=0.0)
    assert watch.states() == {"alpha/checkpoint-500": "settling", "alpha/checkpoint-1000": "ready"}
    shutil.rmtree(watch.merge.watch / "alpha" / "checkpoint-500")  # as save_total_limit does
    watch.see(run_quiet=0.0)
    assert watch.states() == {"alpha/checkpoint-500": "vanished", "alpha/checkpoint-1000": "ready"}


def test_who_is_asked_to_fold_now_waits_for_nobody_but_a_writer(watch: Watch) -> None:
    place = watch.merge.drop("a", 1)
    (place / "SHA256SUMS").write_text(f"{'0' * 64}  model.safetensors\n")
    sighting = watch.source.sight(place)
    assert sighting is not None
    with open(place / "model.safetensors", "ab"):
        watch.intake.take(sighting, now=True)
        assert watch.states() == {"a": "settling"}
    watch.intake.take(sighting, now=True)
    assert watch.states() == {"a": "ready"}


def test_what_the_disk_cannot_read_is_hashed_another_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"x")
    hasher = Hasher(lambda: None, 2**40)

    def broken(*arguments: Any) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    try:
        with monkeypatch.context() as patch:
            patch.setattr(os, "pread", broken)
            hasher.known(stamped(path), [path.name])
            eventually(lambda: not hasher.busy)
        assert hasher.known(stamped(path), [path.name]) == {}
        eventually(lambda: not hasher.busy)
        assert hasher.known(stamped(path), [path.name]) == {path.name: hashlib.sha256(b"x").hexdigest()}
    finally:
        hasher.close()
