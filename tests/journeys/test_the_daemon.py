"""A running daemon: it watches, folds, is asked over its socket, re-reads its configuration, stops, is killed, and goes on."""

import ctypes
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from support.commands import Command, eventually
from support.merges import Sandbox, make_merge, set_in
from support.models import Model, fine_tuned, save_lone, save_model

from mergd.state.errors import Damaged
from mergd.state.history import History
from mergd.state.records import Attempt, Move

SOON = 10.0  # seconds; systemd kills after 90


def status(merge: Sandbox) -> dict[str, Any]:
    """Return what status.json says."""
    try:
        found: dict[str, Any] = json.loads((merge.state / "status.json").read_text())
    except FileNotFoundError:
        return {"head": None, "doing": "", "daemon": None}
    return found


def head_is(merge: Sandbox, version: int) -> None:
    """Wait until a version is the head."""
    eventually(lambda: status(merge)["head"] == version)


def state_is(merge: Sandbox, name: str, state: str) -> None:
    """Wait until a checkpoint's newest row is in a state."""
    eventually(lambda: merge.states().get(name) == state)


def folds(merge: Sandbox, name: str) -> None:
    """Wait until a checkpoint's fold has begun."""
    eventually(lambda: status(merge)["doing"].startswith(f"{name}: "))


def attempts(merge: Sandbox, name: str) -> list[Attempt]:
    """Return the attempts at a checkpoint, oldest first."""
    with History(merge.store.database) as history:
        row = next(row for row in history.checkpoints.all() if row.name == name)
        return history.checkpoints.attempts(row.id)


def moves(merge: Sandbox) -> list[Move]:
    """Return the moves of the head, newest first."""
    with History(merge.store.database) as history:
        return history.moves()


class Listener:
    """Hears what a daemon tells systemd."""

    def __init__(self, path: Path) -> None:
        self.address = str(path)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._socket.bind(self.address)
        self._socket.settimeout(30)

    def hears(self, line: str) -> list[str]:
        """Wait for a message with this line; returns all of its lines."""
        while line not in (lines := self._socket.recv(4096).decode().split("\n")):
            pass
        return lines

    def hears_of(self, pattern: str) -> str:
        """Wait for a message that a pattern fits."""
        while not re.match(pattern, said := self._socket.recv(4096).decode()):
            pass
        return said

    def heard_nothing(self) -> bool:
        """Whether nothing was said."""
        self._socket.settimeout(0.1)
        try:
            self._socket.recv(4096)
        except TimeoutError:
            return True
        return False

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[Listener]:
    """Stand in for systemd's end of the notify socket."""
    listener = Listener(tmp_path / "notify")
    yield listener
    listener.close()


@pytest.fixture
def daemon(merge: Sandbox, systemd: Listener) -> Iterator[Command]:
    """A daemon that is ready and waits for checkpoints."""
    set_in(merge.config, quiet='"0.1s"')
    with started(merge, systemd) as command:
        yield command


@contextmanager
def started(merge: Sandbox, systemd: Listener, **environment: str) -> Iterator[Command]:
    """Run a daemon, once it is ready."""
    with merge.running("run", NOTIFY_SOCKET=systemd.address, **environment) as command:
        systemd.hears("READY=1")
        yield command


# ------------------------------------------------------------------------------------------------------- it watches


def test_it_folds_what_is_dropped_as_soon_as_it_is_quiet(merge: Sandbox, daemon: Command) -> None:
    merge.drop("b", 1)  # the next repeated scan is a minute away
    head_is(merge, 1)
    merge.drop("a.safetensors", 2)
    head_is(merge, 2)
    assert status(merge)["daemon"]["pid"] == daemon.pid
    assert [entry["checkpoint"]["name"] for entry in merge.log()] == ["a.safetensors", "b"]


def test_without_events_the_repeated_scan_finds_the_same(merge: Sandbox, systemd: Listener) -> None:
    set_in(merge.config, quiet='"0.1s"', events="false", rescan='"0.3s"')
    with started(merge, systemd):
        merge.drop("b", 1)
        head_is(merge, 1)
        merge.drop("a.safetensors", 2)
        head_is(merge, 2)


def test_a_checkpoint_that_is_written_slowly_is_folded_once_and_whole(merge: Sandbox, daemon: Command) -> None:
    data = save_lone(merge.root / "aside", merge.fine_tuned(1)).read_bytes()
    (merge.watch / "slow").mkdir()
    with (merge.watch / "slow" / "model.safetensors").open("wb") as file:
        for start in range(0, len(data), len(data) // 5):
            file.write(data[start : start + len(data) // 5])
            file.flush()
            time.sleep(0.15)
    head_is(merge, 1)
    assert [row.state for row in merge.checkpoints()] == ["folded"]
    assert torch.allclose(merge.published()["layer.matrix.weight"], merge.fine_tuned(1)["layer.matrix.weight"])


def test_an_unfinished_download_is_waited_for(merge: Sandbox, daemon: Command) -> None:
    mark = merge.watch / "a" / ".cache" / "huggingface" / "download" / "x.incomplete"
    mark.parent.mkdir(parents=True)
    mark.touch()
    save_model(merge.watch / "a", merge.fine_tuned(1))
    state_is(merge, "a", "settling")
    time.sleep(0.4)
    assert merge.mergd("list", "--json").json[0]["waits_for"] == "x.incomplete to be finished"
    mark.unlink()
    head_is(merge, 1)


def test_a_watched_folder_that_is_made_anew_is_watched_again(merge: Sandbox, systemd: Listener) -> None:
    set_in(merge.config, quiet='"0.1s"', rescan='"0.3s"')
    with started(merge, systemd):
        shutil.rmtree(merge.watch)
        eventually(lambda: "cannot list" in status(merge)["trouble"])
        assert merge.mergd("status", "--check").code == 1
        merge.watch.mkdir()
        eventually(lambda: not status(merge)["trouble"])
        merge.drop("a", 1)
        head_is(merge, 1)
        assert merge.mergd("status", "--check").code == 0


def test_a_touched_checkpoint_changes_nothing_and_a_changed_one_is_held(merge: Sandbox, systemd: Listener) -> None:
    set_in(merge.config, quiet='"0.1s"', rescan='"0.3s"')  # no event tells of a touch
    with started(merge, systemd):
        place = merge.drop("a", 1)
        head_is(merge, 1)
        os.utime(place / "model.safetensors")
        eventually(lambda: [row.state for row in merge.checkpoints()] == ["folded", "folded"])
        save_lone(place / "model.safetensors", merge.fine_tuned(2))
        eventually(lambda: [row.state for row in merge.checkpoints()] == ["folded", "held"])
        assert merge.checkpoints()[-1].reasons[0].code == "changed"
        merge.drop("b", 3)
        head_is(merge, 2)
    assert merge.log()[0]["checkpoint"]["name"] == "b"


def test_a_refused_checkpoint_does_not_stop_it(merge: Sandbox, daemon: Command) -> None:
    model = merge.fine_tuned(1)
    model["layer.matrix.bias"][0] = float("inf")
    merge.drop("a", model)
    (merge.watch / "b.safetensors").write_bytes(b"\xff" * 100)
    merge.drop("c", 2)
    head_is(merge, 1)
    assert merge.states() == {"a": "refused", "b.safetensors": "refused", "c": "folded"}


def test_it_says_what_goes_live(merge: Sandbox, daemon: Command) -> None:
    eventually(lambda: "every checkpoint that is admitted goes live: no gate is set" in daemon.err)
    assert "none is set: every checkpoint that is admitted goes live" in merge.mergd("status").out


# ------------------------------------------------------------------------------------------------- what people ask


def test_commands_go_through_the_daemon_while_it_runs(merge: Sandbox, daemon: Command) -> None:
    for name, seed in (("a", 1), ("b", 2)):
        merge.drop(name, seed)
        head_is(merge, seed)
    before = merge.weight_files(1)
    assert merge.mergd("rollback", "v1", "--json").json["head"] == 1
    assert os.readlink(merge.store.current) == "000001"
    assert merge.weight_files(1) == before
    assert "uid 0 (process" in moves(merge)[0].who or f"uid {os.getuid()} (process" in moves(merge)[0].who
    assert merge.mergd("fold", "--again", "b", "--json").json["head"] == 3
    assert merge.mergd("pause", "--why", "for a test").code == 0
    assert status(merge)["paused"]["why"] == "for a test"
    merge.drop("c", 3)
    state_is(merge, "c", "ready")
    assert merge.mergd("resume").code == 0
    head_is(merge, 4)
    assert daemon.runs


def test_an_error_comes_back_through_the_socket_as_it_is(merge: Sandbox, daemon: Command) -> None:
    for words, code, says in (
        (["rollback"], 2, "no version yet"),
        (["rollback", "v9"], 2, "no version"),
        (["fold", "nothing"], 2, "no checkpoint is called"),
    ):
        ended = merge.mergd(*words)
        assert (ended.code, len(ended.complaint)) == (code, 2), ended.err
        assert says in ended.err
    assert daemon.runs


def test_the_socket_lies_where_systemd_says(merge: Sandbox, systemd: Listener) -> None:
    runtime = merge.root / "runtime"
    runtime.mkdir()
    with started(merge, systemd, RUNTIME_DIRECTORY=str(runtime)):
        assert (runtime / "control.sock").is_socket()
        assert (runtime / "control.sock").stat().st_mode & 0o777 == 0o666
        assert not (merge.state / "control.sock").exists()
        assert merge.mergd("pause").code == 0
        assert status(merge)["paused"]


def test_a_second_daemon_is_told_of_the_first(merge: Sandbox, daemon: Command) -> None:
    for words in (["run"], ["run", "--once"]):
        ended = merge.mergd(*words)
        assert ended.code == 75
        assert f"mergd run (process {daemon.pid}" in ended.err
        assert len(ended.complaint) <= 2


def test_the_health_probe_follows_the_daemons_life(merge: Sandbox, daemon: Command) -> None:
    assert merge.mergd("status", "--check").code == 0
    daemon.send(signal.SIGTERM)
    assert daemon.ended().code == 0
    assert merge.mergd("status", "--check").code == 1
    assert merge.mergd("status", "--json").json["daemon"] is None


# ------------------------------------------------------------------------------------------------ systemd and signals


def test_ready_comes_only_after_recovery(merge: Sandbox, systemd: Listener) -> None:
    merge.drop("a", 1)
    merge.fold_all()
    (merge.state / "drafts" / "000002").mkdir()
    (merge.state / "versions" / "000002").mkdir()
    (merge.state / "models" / "000002").mkdir()
    merge.store.current.unlink()
    merge.store.current.symlink_to("000002")
    with started(merge, systemd):
        assert os.readlink(merge.store.current) == "000001"
        assert [path.name for path in (merge.state / "versions").iterdir()] == ["000001"]
        assert not list((merge.state / "drafts").iterdir())
        assert not (merge.state / "models" / "000002").exists()


def test_a_daemon_that_cannot_start_is_never_ready(merge: Sandbox, systemd: Listener) -> None:
    set_in(merge.config, threads="7")
    with merge.running("run", NOTIFY_SOCKET=systemd.address) as command:
        assert command.ended().code == 78
    assert systemd.heard_nothing()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_stops_when_it_is_told_to(merge: Sandbox, daemon: Command, systemd: Listener, number: int) -> None:
    daemon.send(signal.Signals(number))
    systemd.hears("STOPPING=1")
    ended = daemon.ended()
    assert ended.code == 0
    assert not ended.complaint
    assert status(merge)["daemon"] is None
    assert not (merge.state / "control.sock").exists()


def test_a_signal_wakes_it_whichever_thread_the_kernel_chooses(merge: Sandbox, daemon: Command) -> None:
    time.sleep(0.5)  # until it has seen that nothing is to be done
    # As when a signal comes between the main thread's last look for one and its sleep: nothing interrupts that sleep.
    others = [int(thread) for thread in os.listdir(f"/proc/{daemon.pid}/task") if int(thread) != daemon.pid]
    sent = time.monotonic()
    assert ctypes.CDLL(None).tgkill(daemon.pid, others[0], int(signal.SIGTERM)) == 0
    assert daemon.ended().code == 0
    assert time.monotonic() - sent < SOON


def test_a_good_configuration_is_taken_at_sighup(merge: Sandbox, systemd: Listener) -> None:
    set_in(merge.config, quiet='"1h"')
    with started(merge, systemd) as command:
        merge.drop("a", 1)
        state_is(merge, "a", "settling")
        set_in(merge.config, quiet='"0.1s"')
        command.send(signal.SIGHUP)
        assert any(line.startswith("MONOTONIC_USEC=") for line in systemd.hears("RELOADING=1"))
        systemd.hears("READY=1")
        head_is(merge, 1)
        assert "the configuration was read again" in command.err


BAD: dict[str, dict[str, str]] = {
    "quiet": {"quiet": '"soon"'},
    "gates": {"gates": '["no-such-gate"]'},
    "hooks": {"hooks": '["no-such-hook"]'},
    "out_dtype": {"out_dtype": '"bfloat16"'},
    "threads": {"threads": "3"},
    "alpha": {"alpha": "0.9"},
    "rule": {"rule": '"average"'},
    "watch": {"watch": '"/elsewhere"'},
    "state": {"state": '"/elsewhere"'},
}


@pytest.mark.parametrize("key", BAD)
def test_a_bad_configuration_is_not_taken_at_sighup(merge: Sandbox, daemon: Command, key: str) -> None:
    set_in(merge.config, **BAD[key])
    daemon.send(signal.SIGHUP)
    line = eventually(
        lambda: [line for line in daemon.err.splitlines() if "the configuration" in line or "new conf" in line]
    )[0]
    assert "is not taken" in line
    assert BAD[key][key].strip('[]"') in line or key in line
    merge.drop("a", 1)
    head_is(merge, 1)
    assert merge.versions()[0].rule == "opcm"
    assert merge.published()["layer.matrix.weight"].dtype == torch.float32
    assert status(merge)["gates"] == []


def test_systemd_is_told_that_the_old_configuration_is_kept_until_a_good_one_comes(
    merge: Sandbox, daemon: Command, systemd: Listener
) -> None:
    good = merge.config.read_text()
    set_in(merge.config, quiet='"soon"')
    daemon.send(signal.SIGHUP)
    systemd.hears("RELOADING=1")
    told = systemd.hears("READY=1")[1]
    assert told.startswith("STATUS=waiting for checkpoints")
    assert "the old configuration is kept" in told
    assert "quiet" in told
    merge.config.write_text(good)
    daemon.send(signal.SIGHUP)
    systemd.hears("RELOADING=1")
    assert "kept" not in systemd.hears("READY=1")[1]


# ------------------------------------------------------------------------------------- in the middle of a long fold


@pytest.fixture(scope="module")
def big() -> Model:
    """A model whose fold takes a second or more, in steps of a tenth."""
    generator = torch.Generator().manual_seed(0)
    return {f"layer.{k}.weight": torch.randn(700, 700, generator=generator) for k in range(10)}


@pytest.fixture
def long(tmp_path: Path, big: Model) -> Sandbox:
    """A merge of the big model with one version, and a second checkpoint in the watched folder."""
    merge = make_merge(tmp_path, big, quiet=0.05)
    merge.drop("a", fine_tuned(big, 1))
    merge.fold_all()
    merge.drop("b", fine_tuned(big, 2))
    return merge


def test_the_status_says_what_is_done_while_it_is_done(long: Sandbox, systemd: Listener) -> None:
    said: set[str] = set()
    with started(long, systemd):
        while (now := status(long))["head"] == 1:
            said.add(now["doing"])
            time.sleep(0.02)
        eventually(lambda: status(long)["doing"] == "")
    assert any(doing.startswith("b: folding") for doing in said), said


def test_systemd_is_told_how_far_the_fold_is(long: Sandbox, systemd: Listener) -> None:
    with started(long, systemd):
        assert systemd.hears_of(r"STATUS=folding b \d+/10 weights")
        assert systemd.hears_of(r"STATUS=waiting for checkpoints; the head is v2")


def test_sigterm_abandons_a_fold_and_leaves_its_checkpoint_ready(long: Sandbox, systemd: Listener) -> None:
    with started(long, systemd) as command:
        folds(long, "b")
        sent = time.monotonic()
        command.send(signal.SIGTERM)
        assert command.ended().code == 0
        assert time.monotonic() - sent < SOON
    assert long.states() == {"a": "folded", "b": "ready"}
    assert [attempt.outcome for attempt in attempts(long, "b")] == ["abandoned"]
    assert not list((long.state / "drafts").iterdir())
    assert [version.number for version in long.versions()] == [1]
    assert long.mergd("run", "--once").code == 0
    assert [version.number for version in long.versions()] == [1, 2]


def test_a_rollback_abandons_a_fold_whose_checkpoint_comes_again_on_the_new_head(
    long: Sandbox, systemd: Listener
) -> None:
    with started(long, systemd):
        head_is(long, 2)
        long.drop("c", fine_tuned(long.model, 3))
        folds(long, "c")
        asked = time.monotonic()
        assert long.mergd("rollback", "v1").code == 0
        assert time.monotonic() - asked < SOON
        head_is(long, 3)
    versions = long.log()
    assert [(entry["version"], entry["parent"]) for entry in versions] == [(3, 1), (2, 1), (1, None)]
    assert versions[0]["checkpoint"]["name"] == "c"
    assert [attempt.outcome for attempt in attempts(long, "c")] == ["abandoned", "folded"]


def test_a_pause_abandons_a_fold_and_a_resume_takes_it_up(long: Sandbox, systemd: Listener) -> None:
    with started(long, systemd):
        folds(long, "b")
        assert long.mergd("pause").code == 0
        assert long.states()["b"] == "ready"
        assert status(long)["doing"] == ""
        assert long.mergd("status", "--json").json["head"] == 1
        assert long.mergd("resume").code == 0
        head_is(long, 2)


def test_a_command_that_waits_for_a_fold_shows_its_progress(long: Sandbox, systemd: Listener) -> None:
    long.mergd("pause")
    with started(long, systemd):
        long.mergd("resume")
        ended = long.mergd("fold", "b", "--json")
        assert ended.code == 0, ended.err
        assert ended.json["checkpoints"] == [{"name": "b", "state": "folded", "reasons": []}]
        assert "b: folding" in ended.err
        assert "/10 weights" in ended.err


def test_a_command_that_waits_is_told_when_the_daemon_stops(long: Sandbox, systemd: Listener) -> None:
    long.mergd("pause")
    with started(long, systemd) as command, long.running("resume") as resumed:
        resumed.ended()
        with long.running("fold", "b") as asking:
            folds(long, "b")
            eventually(lambda: "b: folding" in asking.err)
            command.send(signal.SIGTERM)
            assert command.ended().code == 0
            assert asking.ended().code == 75
    assert long.states()["b"] == "ready"


def test_a_checkpoint_that_changes_during_its_fold_waits_until_it_is_quiet(long: Sandbox, systemd: Listener) -> None:
    with started(long, systemd):
        folds(long, "b")
        save_lone(long.root / "new", fine_tuned(long.model, 4)).rename(long.watch / "b" / "model.safetensors")
        head_is(long, 2)
    assert [attempt.outcome for attempt in attempts(long, "b")] == ["changed", "folded"]
    shown = long.mergd("show", "v2", "--json").json
    tau = (fine_tuned(long.model, 4)["layer.0.weight"] - long.model["layer.0.weight"]).norm()
    assert shown["weights"]["layer.0.weight"]["task_norm"] == pytest.approx(float(tau), rel=1e-5)


def test_a_checkpoint_that_is_deleted_during_its_fold_vanishes(long: Sandbox, systemd: Listener) -> None:
    with started(long, systemd):
        folds(long, "b")
        long.remove("b")
        state_is(long, "b", "vanished")
    assert [version.number for version in long.versions()] == [1]


def test_after_a_kill_in_the_middle_it_is_folded_exactly_once(long: Sandbox, systemd: Listener) -> None:
    with started(long, systemd) as command:
        folds(long, "b")
        command.send(signal.SIGKILL)
        assert command.ended().code == -signal.SIGKILL
    assert long.states()["b"] == "folding"
    with started(long, systemd):
        head_is(long, 2)
        assert [entry["checkpoint"]["name"] for entry in long.log()] == ["b", "a"]
        assert [attempt.outcome for attempt in attempts(long, "b")] == [None, "folded"]
        assert long.mergd("verify").code == 0
        assert sorted(os.listdir(long.state / "models")) == ["000001", "000002", "current"]


ENDS_ILL = """
import sys, time
from pathlib import Path
from mergd.daemon import loop, service, working
from mergd.daemon.configuration import read_settings
from mergd.state.errors import Damaged
def fail(self):
    raise Damaged("bits rot", "look at the disk")
service.STOPS_WITHIN = 0.2
loop.Loop.run, working.Working.close = fail, lambda self: time.sleep(600)
settings = read_settings(Path(sys.argv[1]))
service.Service(settings, lambda: settings).run()
"""


def test_an_error_that_ends_it_waits_for_no_step_and_keeps_its_exit_code(merge: Sandbox) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", ENDS_ILL, str(merge.config)], capture_output=True, text=True, check=False
    )
    assert ran.returncode == Damaged.exit_code, ran.stderr
    assert "bits rot (look at the disk)" in ran.stderr
