"""Gates that are programs: what drops is not published, what fails holds, what is within tolerance goes live."""

import json
import os
import re
import signal
import socket
import sqlite3
import sys
import tempfile
import threading
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import repository
from support.commands import eventually
from support.gates import BASE, PYTHON, asked, base_model, drop, gated, program, write_gate
from support.merges import NO_LIMITS, Sandbox, make_merge, set_in

from mergd.daemon.drafting import Drafting
from mergd.daemon.settings_tables import GateSettings
from mergd.plugins.run_program import answer
from mergd.state.errors import Misconfigured
from mergd.state.history import History
from mergd.state.records import Checkpoint, Evaluation

SOON = 10.0  # seconds; systemd kills after 90
NOBODY = 65534


def row_of(merge: Sandbox, name: str) -> Checkpoint:
    return next(row for row in merge.checkpoints() if row.name == name)


def codes(merge: Sandbox, name: str) -> list[str]:
    return [reason.code for reason in row_of(merge, name).reasons]


def head(merge: Sandbox) -> int | None:
    with History(merge.store.database) as history:
        found = history.head()
        return found.number if found else None


def measured(merge: Sandbox, version: int) -> dict[str, Evaluation]:
    with History(merge.store.database) as history:
        found = history.version(version)
        assert found is not None
        return history.evaluations.of(found.digest)


# --------------------------------------------------------------------------------------------------- metrics decide


def test_what_drops_is_not_published_and_is_told_by_which_metric_and_how_much(tmp_path: Path) -> None:
    merge = gated(tmp_path)
    for name, value in (("a", 1.25), ("b", 0.75), ("c", 1.24)):
        drop(merge, name, value)
    assert merge.mergd("run", "--once").code == 0
    assert merge.states() == {"a": "folded", "b": "held", "c": "folded"}
    assert float(merge.published()["layer.matrix.bias"][0]) == pytest.approx(1.24)
    told = merge.mergd("list").out
    assert "metric-drop: found bias 0.75, 0.5 below 1.25, which it is now, by gate eval" in told
    assert "expected at most 0.01 (gate.eval.drop)" in told
    assert "mergd approve" in told


def test_small_drops_do_not_add_up(tmp_path: Path) -> None:
    merge = gated(tmp_path)
    for k in range(1, 21):
        drop(merge, f"{k:02d}", BASE - 0.005 * k)
    merge.fold_all()
    assert [row.name for row in merge.checkpoints() if row.state == "folded"] == [f"{k:02d}" for k in range(1, 7)]
    assert codes(merge, "07") == ["metric-total-drop"]


def test_what_a_person_approves_is_folded_and_later_ones_are_held_against_it(tmp_path: Path) -> None:
    merge = gated(tmp_path)
    drop(merge, "a", 0.5)
    merge.fold_all()
    assert codes(merge, "a") == ["metric-drop", "metric-total-drop"]
    assert merge.mergd("approve", "a").code == 0
    merge.fold_all()
    drop(merge, "b", 0.495)
    drop(merge, "c", 0.4)
    merge.fold_all()
    assert merge.states() == {"a": "folded", "b": "folded", "c": "held"}


def test_a_program_refuses_with_its_last_line(tmp_path: Path) -> None:
    then = "if asked['checkpoint']: sys.stderr.write('looking\\nit says unkind things\\n'); sys.exit(65)"
    merge = gated(tmp_path, then)
    drop(merge, "a", 1.0)
    merge.fold_all()
    assert (row_of(merge, "a").state, codes(merge, "a")) == ("refused", ["gate-refused"])
    assert row_of(merge, "a").reasons[0].found == "gate eval refuses the draft: it says unkind things"


def test_one_that_only_observes_holds_nothing_and_measures_all(tmp_path: Path) -> None:
    merge = gated(
        tmp_path, "if asked['version'] == 2: sys.exit(65)\nif asked['version'] == 3: sys.exit(1)", mode="observe"
    )
    for name, value in (("a", 0.5), ("b", 0.4), ("c", 0.3), ("d", 0.2)):
        drop(merge, name, value)
    ran = merge.mergd("run", "--once")
    assert set(merge.states().values()) == {"folded"}
    assert [round(m["eval"].metrics["bias"].value, 3) if (m := measured(merge, v)) else None for v in (1, 2, 3, 4)] == [
        0.5,
        None,
        None,
        None,
    ]  # fmt: skip - neither v2 nor v3 can be measured, so there is nothing that v4 could be held against
    assert "gate eval only observes; else held: bias 0.5, 0.5 below 1" in ran.err
    assert [version.gates for version in merge.versions()] == [()] * 4


FAILS = {
    "crashes": ("sys.stderr.write('no CUDA\\n'); sys.exit(1)", "exit code 1: no CUDA"),
    "is killed": ("os.kill(os.getpid(), 9)", "signal 9"),
    "hangs": ("time.sleep(600)", "it took too long"),
    "says nothing": ("sys.exit(0)", "no JSON"),
    "chats": ("print('accuracy: 0.9')", "no JSON"),
    "says NaN": ("metrics['bias']['value'] = float('nan')", "the number NaN"),
    "says another protocol": ("print('{\"protocol\": 2}'); sys.exit(0)", "no answer of protocol 1"),
    "says too much": ("print('x' * 10**7)", "more than 64 KiB"),
    "says nothing of what the head has": ("metrics = {'other': metrics['bias']}", ""),
}


@pytest.mark.parametrize("how", FAILS)
def test_one_that_fails_holds_its_checkpoint_and_nothing_else(tmp_path: Path, how: str) -> None:
    does, why = FAILS[how]
    deadline = "2s" if how == "hangs" else "60s"
    merge = gated(tmp_path, f"if asked['checkpoint'] == 'b': {does}", deadline=deadline)
    for name in "abc":
        drop(merge, name, 1.0)
    merge.fold_all()
    assert merge.states() == {"a": "folded", "b": "held", "c": "folded"}
    assert codes(merge, "b") == [("gate-failed" if why else "metric-missing")]
    assert why in row_of(merge, "b").reasons[0].found
    assert [version.checkpoint for version in merge.versions()] == [row_of(merge, "a").id, row_of(merge, "c").id]


def test_one_that_is_not_there_holds_with_what_is_wrong(tmp_path: Path) -> None:
    merge = gated(tmp_path, command=["/nowhere/gate"])
    drop(merge, "a", 1.0)
    merge.fold_all()
    found = row_of(merge, "a").reasons[0].found
    assert found.startswith("gate eval could not measure the base model: ")
    assert "/nowhere/gate cannot be run: No such file or directory" in found


def test_all_gates_are_heard_before_a_person_decides(tmp_path: Path) -> None:
    merge = gated(tmp_path)
    other = write_gate(tmp_path / "other.py", "metrics = {'other': metrics['bias']}")
    words = json.dumps(other["command"])
    merge.config.write_text(f"{merge.config.read_text()}\n[gate.other]\ncommand = {words}\ntotal_drop = 9\n")
    drop(merge, "a", 0.5)
    merge.fold_all()
    assert codes(merge, "a") == ["metric-drop", "metric-total-drop", "metric-drop"]
    assert "gate other" in row_of(merge, "a").reasons[2].found


# -------------------------------------------------------------------------------------------------- measured once


def test_the_base_model_the_head_and_each_draft_are_measured_once(tmp_path: Path) -> None:
    merge = gated(tmp_path)
    drop(merge, "a", 1.0)
    drop(merge, "b", 0.5)
    merge.fold_all()
    merge.mergd("approve", "b")
    drop(merge, "c", 0.5)
    merge.fold_all()
    assert set(merge.states().values()) == {"folded"}
    assert [(told["version"], told["checkpoint"], told["parent"]) for told in asked(merge)] == [
        (None, None, None), (1, "a", None), (2, "b", 1), (3, "c", 2),
    ]  # fmt: skip
    assert asked(merge)[0]["model"] == str(merge.base)
    assert asked(merge)[1]["model"] == str(merge.state / "drafts" / "000001" / "model")
    assert {told["deadline_s"] for told in asked(merge)} == {1800.0}


def test_a_gate_that_comes_later_measures_the_head_first(tmp_path: Path) -> None:
    merge = make_merge(tmp_path, base_model(), rule="lawa", parameters={"k": 1}, limits=NO_LIMITS)
    drop(merge, "a", 2.0)
    merge.fold_all()
    words = json.dumps(write_gate(program(tmp_path))["command"])
    merge.config.write_text(f"{merge.config.read_text()}\n[gate.eval]\ncommand = {words}\n")
    drop(merge, "b", 1.5)
    merge.fold_all()
    assert [told["model"] for told in asked(merge)][:2] == [str(merge.base), str(merge.store.model(1))]
    assert (asked(merge)[1]["version"], asked(merge)[1]["checkpoint"]) == (1, None)
    assert codes(merge, "b") == ["metric-drop", "metric-total-drop"]


def test_a_program_that_was_changed_measures_anew(tmp_path: Path) -> None:
    merge = gated(tmp_path)
    drop(merge, "a", 1.0)
    merge.fold_all()
    write_gate(program(tmp_path), "metrics['bias']['value'] *= 2")
    drop(merge, "b", 0.997)
    merge.fold_all()
    assert [told["version"] for told in asked(merge)] == [None, 1, None, 1, 2]
    assert merge.states() == {"a": "folded", "b": "folded"}


def test_other_tolerances_measure_nothing_anew(tmp_path: Path) -> None:
    merge = gated(tmp_path)
    drop(merge, "a", 0.5)
    merge.fold_all()
    set_in(merge.config, **{"gate.eval.drop": "9", "gate.eval.total_drop": "9"})
    merge.mergd("fold", merge.watch / "a")
    assert merge.states() == {"a": "folded"}
    assert len(asked(merge)) == 2


# -------------------------------------------------------------------------------------------- while one is awaited


HANGS = """
if asked["checkpoint"] == "b" and not os.path.exists(__file__ + ".go"):
    with open(__file__ + ".pid", "w") as file:
        file.write(str(os.getpid()))
    time.sleep(600)
"""


@pytest.fixture
def hanging(tmp_path: Path) -> Iterator[Sandbox]:
    """A merge with the head v1, whose gate hangs when it sees b."""
    merge = gated(tmp_path, HANGS)
    drop(merge, "a", 1.0)
    merge.fold_all()
    drop(merge, "b", 1.0)
    yield merge
    if awaited(merge) and runs(awaited(merge)):
        os.kill(awaited(merge), signal.SIGKILL)


def awaited(merge: Sandbox) -> int:
    """Return the pid of the gate that hangs, 0 before it does."""
    path = Path(f"{program(merge.root)}.pid")
    return int(path.read_text() or 0) if path.exists() else 0


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def lets_go(merge: Sandbox) -> None:
    Path(f"{program(merge.root)}.go").touch()


def status(merge: Sandbox) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((merge.state / "status.json").read_text())
    return found


def test_the_status_says_for_whom_it_waits_and_for_how_long(hanging: Sandbox) -> None:
    with hanging.running("run"):
        eventually(lambda: "waiting for gate eval, 1 s of 1800 s" in status(hanging)["doing"])


def test_a_stop_does_not_wait_for_a_gate(hanging: Sandbox) -> None:
    with hanging.running("run") as daemon:
        eventually(lambda: awaited(hanging))
        began = time.monotonic()
        daemon.send(signal.SIGTERM)
        assert daemon.ended().code == 0
        assert time.monotonic() - began < SOON
    assert not runs(awaited(hanging))
    assert hanging.states() == {"a": "folded", "b": "ready"}


@pytest.mark.parametrize(
    "request_", [["pause"], ["rollback", "v1"], ["refuse", "b", "--why", "no"]], ids=lambda r: r[0]
)
def test_what_goes_before_everything_waits_for_no_gate(hanging: Sandbox, request_: list[str]) -> None:
    with hanging.running("run"):
        first = eventually(lambda: awaited(hanging))
        assert hanging.mergd(*request_).code == 0
        eventually(lambda: not runs(first))
    assert hanging.states()["b"] in (("refused",) if request_[0] == "refuse" else ("ready", "folding"))
    assert head(hanging) == 1


def test_killed_in_mid_gate_it_measures_again_and_folds_once(hanging: Sandbox) -> None:
    with hanging.running("run") as daemon:
        eventually(lambda: awaited(hanging))
        daemon.send(signal.SIGKILL)
        daemon.ended()
    before = len(asked(hanging))
    os.kill(awaited(hanging), signal.SIGKILL)
    lets_go(hanging)
    hanging.fold_all()
    assert hanging.states() == {"a": "folded", "b": "folded"}
    assert len(hanging.versions()) == 2
    assert [told["version"] for told in asked(hanging)[before:]] == [2]  # the base model and v1 were not forgotten


def test_what_was_measured_before_a_stop_is_not_measured_again(tmp_path: Path) -> None:
    merge = gated(tmp_path, HANGS)
    drop(merge, "b", 1.0)  # the base model is measured first
    with merge.running("run") as daemon:
        eventually(lambda: awaited(merge))
        daemon.send(signal.SIGTERM)
        daemon.ended()
    lets_go(merge)
    merge.fold_all()
    assert [told["version"] for told in asked(merge)] == [None, 1, 1]


def test_what_there_is_no_room_to_write_down_is_a_full_disk_and_not_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(evaluation: Evaluation) -> None:
        error = sqlite3.OperationalError("database or disk is full")
        error.sqlite_errorcode = sqlite3.SQLITE_FULL
        raise error

    merge = gated(tmp_path)
    drop(merge, "a", 1.0)
    with merge.loop() as loop:
        with monkeypatch.context() as patch:
            patch.setattr(loop._history.evaluations, "add", full)
            loop.post("rescan")
            loop.run(until=lambda: bool(loop.trouble))
        assert "disk full" in loop.trouble
        loop.run(until=loop.idle)
    assert merge.states() == {"a": "folded"}
    assert len(asked(merge)) == 2  # the base model and the draft


def test_a_fold_that_runs_keeps_the_configuration_that_it_began_with(
    merge: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[Drafting] = []
    with merge.loop() as loop:
        monkeypatch.setattr(loop._work._hands, "start", lambda job, draft: begun.append(draft.func.__self__))
        merge.drop("a", 1)
        loop.post("rescan")
        loop.run(until=lambda: bool(begun))
        before = loop.settings
        loop._work.take_settings(before.model_copy(update={"archive": "none"}), loop._merge)
        assert begun[0].settings is before
        assert begun[0].gating is loop._work._drafting.gating  # whose measurements are written down


def test_a_reload_takes_other_gates(hanging: Sandbox) -> None:
    lets_go(hanging)
    with hanging.running("run") as daemon:
        eventually(lambda: head(hanging) == 2)
        set_in(hanging.config, **{"gate.eval.mode": '"observe"'})
        daemon.send(signal.SIGHUP)
        eventually(lambda: status(hanging)["gates"] == ["eval (only observes)"])
        drop(hanging, "c", 0.1)
        eventually(lambda: head(hanging) == 3)


# -------------------------------------------------------------------------------------- what a program is given


def test_a_program_gets_neither_secrets_nor_files(tmp_path: Path) -> None:
    looks = (
        "open(__file__ + '.seen', 'w').write(json.dumps([dict(os.environ), os.listdir('/proc/self/fd'), os.getcwd()]))"
    )
    merge = gated(tmp_path, looks)
    drop(merge, "a", 1.0)
    with merge.running("run", "--once", HF_TOKEN="hf_secret", PYTHONPATH=os.environ.get("PYTHONPATH", "")) as ran:
        assert ran.ended().code == 0
    environment, files, folder = json.loads(Path(f"{program(tmp_path)}.seen").read_text())
    assert environment.keys() <= {"PATH", "LANG", "LC_CTYPE", "HOME"}  # Python sets LC_CTYPE itself
    assert environment["HOME"] == "/nonexistent"
    assert len(files) <= 5  # the three that each has, what it writes, and what lists them
    assert folder == "/"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_a_gate_that_is_another_user_can_read_the_drafted_model_and_nothing_else() -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        merge = gated(Path(folder), OPENS)
        (merge.base / "model.safetensors").chmod(0o644)
        program(merge.root).chmod(0o644)
        Path(f"{program(merge.root)}.asked").touch()
        Path(f"{program(merge.root)}.asked").chmod(0o666)
        become = ["/usr/bin/setpriv", f"--reuid={NOBODY}", "--clear-groups"]
        set_in(
            merge.config,
            **{"gate.eval.command": json.dumps([*become, sys.executable, "-I", "-S", str(program(merge.root))])},
        )
        drop(merge, "a", 1.0)
        merge.fold_all()
        assert (row_of(merge, "a").state, row_of(merge, "a").reasons) == ("folded", ())


OPENS = """
state = os.path.dirname(os.path.dirname(os.path.dirname(asked["model"])))
secrets = ["mergd.db", "drafts/000001/slots", "drafts", "versions", "lock"] if asked["version"] else []
for name in secrets[:-1]:
    try:
        os.listdir(os.path.join(state, name))
        sys.exit(f"it can read {name}")
    except PermissionError:
        pass
    except NotADirectoryError:
        try:
            open(os.path.join(state, name))
            sys.exit(f"it can open {name}")
        except PermissionError:
            pass
assert os.getuid() == 65534
"""


def test_a_gate_of_systemds_is_asked_at_its_socket(tmp_path: Path) -> None:
    table = write_gate(program(tmp_path))
    path = tmp_path / "gate.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as unit:
        unit.bind(str(path))
        unit.listen()
        serving = threading.Thread(target=serve, args=(unit, table["command"], 2))
        serving.start()
        merge = gated(tmp_path, command=[], socket=str(path))
        drop(merge, "a", 0.75)
        merge.fold_all()
        serving.join()
    assert codes(merge, "a") == ["metric-drop", "metric-total-drop"]
    assert len(asked(merge)) == 2


def serve(unit: socket.socket, command: list[str], count: int) -> None:
    for _ in range(count):
        asker, _ = unit.accept()
        with asker:
            answer(asker, command)


# ---------------------------------------------------------------------------------------------- what people see


@pytest.fixture
def three(tmp_path: Path) -> Sandbox:
    """A merge whose gate has a metric of each checkpoint, which wears off as others are folded."""
    merge = gated(tmp_path, WEARS_OFF, drop=0.2, total_drop=1.0)
    for k, name in enumerate("abc"):
        drop(merge, name, 1.0 + k)
    merge.fold_all()
    assert head(merge) == 3
    return merge


WEARS_OFF = """
v = asked["version"] or 0
metrics = {name: {"value": round(0.9 - 0.1 * max(v - k, 0) if v >= k else 0.5, 6), "higher_is_better": True, "n": 100}
           for k, name in ((1, "a"), (2, "b/accuracy"), (3, "c"))}
"""


def test_show_has_the_task_by_version_matrix_and_the_backward_transfer(three: Sandbox) -> None:
    told = three.mergd("show", "v3", "--json").json["transfer"]["eval"]
    assert told["matrix"] == {
        "a": {"0": 0.5, "1": 0.9, "2": 0.8, "3": 0.7},
        "b/accuracy": {"0": 0.5, "1": 0.5, "2": 0.9, "3": 0.8},
        "c": {"0": 0.5, "1": 0.5, "2": 0.5, "3": 0.9},
    }
    assert told["backward_transfer"] == pytest.approx((-0.2 - 0.1) / 2)
    out = three.mergd("show", "v3").out
    assert "gate eval, backward transfer -0.15" in out
    assert "0.5       0.9 (v1)        0.7       a\n" in out
    assert "0.5       -               0.9       c\n" in out


def test_the_log_the_status_and_the_card_say_what_was_measured(three: Sandbox) -> None:
    assert "eval: a 0.7, b/accuracy 0.8, c 0.9" in three.mergd("log").out.splitlines()[0]
    assert three.log()[-1]["measured"] == {"eval": {"a": 0.9, "b/accuracy": 0.5, "c": 0.5}}
    out = three.mergd("status").out
    assert "gates: eval\n" in out
    assert "measured: eval: a 0.7, b/accuracy 0.8, c 0.9\n" in out
    assert "Gate eval measured at " in three.mergd("card", "v3").out
    assert "a 0.7 (n = 100), b/accuracy 0.8 (n = 100), c 0.9 (n = 100)." in three.mergd("card", "v3").out


def test_what_no_gate_measured_is_shown_without(merge: Sandbox) -> None:
    merge.drop("a", 1)
    merge.fold_all()
    assert merge.mergd("show", "v1", "--json").json["transfer"] == {}
    assert "backward transfer" not in merge.mergd("show", "v1").out
    assert "measured: " not in merge.mergd("status").out


def test_a_version_says_which_gates_it_passed(three: Sandbox) -> None:
    assert {version.gates for version in three.versions()} == {("eval",)}
    assert all(version.seconds["gates"] > 0 for version in three.versions())


def test_what_it_writes_for_people_is_in_a_file_of_its_owners(tmp_path: Path) -> None:
    merge = gated(tmp_path, "sys.stderr.write('a long story\\n')")
    drop(merge, "a", 1.0)
    merge.fold_all()
    log = merge.state / "logs" / "gate-eval.log"
    assert log.stat().st_mode & 0o777 == 0o600
    assert "a long story\n" in log.read_text()


def test_a_gate_that_is_no_program_is_told_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(Misconfigured, match=r"gate\.eval.*either command or socket"):
        gated(tmp_path, command=[])
    assert PYTHON


# ------------------------------------------------------------------------------------------------- the page's own


def test_the_example_of_the_page_is_a_gate(tmp_path: Path) -> None:
    page = (repository.ROOT / "docs" / "gates.md").read_text()
    (script,) = re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    (table,) = re.findall(r"^```toml\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    path = tmp_path / "calm.py"
    path.write_text(script)
    (name, said), *others = tomllib.loads(table)["gate"].items()
    assert not others
    merge = make_merge(tmp_path, gate={name: said | {"command": [sys.executable, str(path)]}}, limits=NO_LIMITS)
    merge.drop("a", 1)
    merge.drop("b", {n: t * 100 if t.is_floating_point() else t for n, t in merge.model.items()})
    merge.fold_all()
    assert merge.states() == {"a": "folded", "b": "held"}
    assert "calm" in row_of(merge, "b").reasons[0].found
    defaults = {key: said[key] for key in ("deadline", "drop", "total_drop")}
    assert GateSettings(command=("/x",), **defaults) == GateSettings(command=("/x",))
