"""An installed service whose gate and hook are units of their own: what they may, and what becomes of a gate that misbehaves."""

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.models import tiny_base
from support.served import Served
from support.systemd_machine import PYTHON, Machine

pytestmark = [pytest.mark.systemd, pytest.mark.root]
TOKEN, WATCHDOG, DEADLINE = "hf_canary0123456789", 8, "60s"
# What a program in its unit may not: it says in the journal what it found, for it can write nowhere else.
SEEK = """
import json, os, pathlib, socket, sys
def can(act):
    try:
        return act() or b"."
    except OSError:
        return b""
def reads(token, state):
    files = [pathlib.Path(at, name) for top in ("/etc", "/run", "/var/lib/mergd", "/var/cache", "/srv/gated")
             for at, _, names in os.walk(top) for name in names if not name.endswith(".py") and pathlib.Path(at, name).is_file()]
    texts = {path: can(lambda: path.open("rb").read(2**16)) for path in (*files, *pathlib.Path("/proc").glob("[0-9]*/environ"))}
    return {
        "token": [str(path) for path, text in texts.items() if token in text],
        "state": [str(path) for path, text in texts.items() if text and path.is_relative_to(state) and "/model" not in str(path)],
    }
def writes(model):
    weights, control = pathlib.Path(model, "model.safetensors"), socket.socket(socket.AF_UNIX)
    return [name for name, act in {
        "write": lambda: weights.open("r+b").close(), "remove": weights.unlink, "chmod": lambda: weights.chmod(0o777),
        "add": weights.with_name("new").touch, "move": lambda: weights.parent.rename(f"{model}-away"),
        "ask": lambda: control.connect("/run/mergd/gated/control.sock"),
    }.items() if can(act)]
if __name__ == "__main__":
    print(json.dumps(reads(sys.argv[1].encode(), sys.argv[2])))
"""
JUDGE = f"""
import json, os, pathlib, sys, time
asked = json.load(sys.stdin)
what, flag = asked["checkpoint"] or "", pathlib.Path("/srv/gated/hang")
metrics = {{"good": {{"value": -1.0 if what == "worse" else 1.0, "higher_is_better": True, "n": 1}}}}
match what:
    case "eats":
        eaten = b"x" * 10**9
    case "hangs" | "stopped":
        while flag.exists():
            time.sleep(0.05)
    case "slow":
        time.sleep({2.5 * WATCHDOG})
    case "crashes":
        os.abort()
    case "huge":
        print("1" * 10**7)
    case "nan":
        metrics["good"]["value"] = float("nan")
    case "rude":
        sys.stderr.write("it is rude\\n")
        sys.exit(65)
    case "product":
        import torch
        from safetensors.torch import load_file
        matrix = load_file(asked["model"] + "/model.safetensors")["layer.matrix.weight"].to(torch.bfloat16)
        sys.stderr.write(f"a product in {{(matrix @ matrix).dtype}}\\n")
    case "seeks":
        sys.path.insert(0, "/srv/gated")
        import seek
        found = seek.reads({TOKEN!r}.encode(), "/var/lib/mergd/gated") | {{"writes": seek.writes(asked["model"])}}
        sys.stderr.write(f"found {{json.dumps(found)}}\\n")
print(json.dumps({{"protocol": 1, "metrics": metrics}}))
"""
HOOK = """
import json, sys
news = json.load(sys.stdin)
sys.stderr.write(f"told of {news['kind']} {news['version']} at {news['path']}\\n")
"""
GATE, HOOKED = "/run/mergd-programs/gated/gate-evals.sock", "/run/mergd-programs/gated/hook-announce.sock"


@pytest.fixture(scope="module")
def gated(machine: Machine) -> Served:
    """A merge that was installed with a gate and a hook, whose daemon has a token and little patience."""
    gated = Served(machine, "gated", tiny_base())
    for name, text in (("seek.py", SEEK), ("judge.py", JUDGE), ("announce.py", HOOK)):
        (gated.srv / name).write_text(text)
    gated.init()
    gated.mergd("service", "install")
    limits = ("--memory", "400M", "--seconds", "120")
    gated.mergd("service", "gate", "--program", "evals", *limits, "--", PYTHON, "/srv/gated/judge.py")
    said = gated.mergd("service", "hook", "--program", "announce", "--", PYTHON, "/srv/gated/announce.py")
    assert f'[hook.announce] of the configuration: socket = "{HOOKED}"' in said
    tables = f'\n[gate.evals]\nsocket = "{GATE}"\ndeadline = "{DEADLINE}"\n\n[hook.announce]\nsocket = "{HOOKED}"\n'
    gated.config.write_text(gated.config.read_text() + tables)
    token = machine.root / "etc/mergd/hub-read"
    token.write_text(TOKEN)
    token.chmod(0o600)
    given = {"LoadCredential": "hub-read:/etc/mergd/hub-read", "Environment": "HF_TOKEN_PATH=%d/hub-read"}
    gated.set(WatchdogSec=str(WATCHDOG), **given)
    machine.run("systemctl", "restart", gated.unit)
    gated.drop("first")
    gated.heads(1)
    return gated


@pytest.fixture(autouse=True)
def flag(gated: Served) -> Iterator[Path]:
    """While it is there, a gate hangs that was asked to."""
    path = gated.srv / "hang"
    path.touch()
    yield path
    path.unlink(missing_ok=True)


def goes_live(gated: Served, name: str) -> None:
    """Drop a checkpoint that nothing is wrong with; it is folded onto the head as it was."""
    head = gated.status()["head"]
    gated.drop(name)
    gated.heads(head + 1)


def said(gated: Served, kind: str) -> str:
    """Return what the programs of a kind said in the journal."""
    return gated.machine.run("journalctl", "-u", f"mergd-{kind}-gated--*", "-o", "cat", "--no-pager")


def test_stock_torch_multiplies_the_drafted_model_in_bfloat16(gated: Served) -> None:
    goes_live(gated, "product")
    gated.machine.eventually(lambda: "a product in torch.bfloat16" in said(gated, "gate"))
    shown = json.loads(gated.mergd("show", f"v{gated.status()['head']}", "--json"))
    print(f"\nmeasured in {shown['seconds']['gates']:.1f} s")


def test_a_gate_finds_no_token_no_state_and_nothing_to_change(gated: Served) -> None:
    run = ("/srv/gated/seek.py", TOKEN, gated.state)
    assert all(json.loads(gated.machine.run(PYTHON, *run)).values())  # root finds both
    found = gated.machine.run("ls", f"/run/credentials/{gated.unit}")
    assert found.split() == ["hub-read"]
    goes_live(gated, "seeks")
    gated.machine.eventually(lambda: "found {" in said(gated, "gate"))
    (line,) = (line for line in said(gated, "gate").splitlines() if line.startswith("found {"))
    assert not any(json.loads(line.removeprefix("found ")).values()), line


MISBEHAVE = {
    "eats": "signal 9|the unit closed the connection without an answer",  # the program alone, or all of the unit
    "crashes": "signal 6",
    "nan": "the number NaN",
    "huge": "it answered with more than 64 KiB",
    "worse": "good -1",
}


@pytest.mark.parametrize("what", MISBEHAVE)
def test_one_that_misbehaves_costs_its_checkpoint_alone(gated: Served, what: str) -> None:
    daemon, head, held = gated.pid, gated.status()["head"], gated.status()["held"]
    gated.drop(what)
    gated.machine.eventually(lambda: gated.status()["held"] == held + 1)
    row = gated.row(what)
    assert row["state"] == "held"
    assert re.search(MISBEHAVE[what], row["reasons"][0]["found"])
    assert gated.status()["head"] == head
    goes_live(gated, f"after-{what}")
    assert gated.pid == daemon


def test_a_gate_may_refuse_with_its_reason(gated: Served) -> None:
    gated.drop("rude")
    gated.machine.eventually(lambda: gated.status()["refused"] == 1)
    assert gated.row("rude")["reasons"][0]["found"] == "gate evals refuses the draft: it is rude"


def test_one_that_hangs_is_ended_at_its_deadline_and_the_next_is_asked_at_once(gated: Served, flag: Path) -> None:
    daemon, head, held = gated.pid, gated.status()["head"], gated.status()["held"]
    gated.change(f'deadline = "{DEADLINE}"', 'deadline = "4s"')
    for name in ("hangs", "prompt-1", "prompt-2"):
        gated.drop(name)
    gated.heads(head + 2)
    assert gated.status()["held"] == held + 1
    assert "it took too long" in gated.row("hangs")["reasons"][0]["found"]
    assert gated.pid == daemon
    gated.change('deadline = "4s"', f'deadline = "{DEADLINE}"')


def test_the_watchdog_waits_for_a_gate_until_its_deadline(gated: Served) -> None:
    daemon, restarts = gated.pid, gated.restarts
    assert gated.machine.show(gated.unit, "WatchdogUSec") == f"{WATCHDOG}s"
    goes_live(gated, "slow")  # two and a half times as long
    assert (gated.pid, gated.restarts) == (daemon, restarts)


def test_a_stop_in_the_middle_of_a_gate_ends_it_and_the_checkpoint_waits(gated: Served, flag: Path) -> None:
    head = gated.status()["head"]
    gated.drop("stopped")
    gated.machine.eventually(lambda: gated.machine.show(gated.unit, "StatusText").startswith("waiting for gate evals"))
    began = time.monotonic()
    gated.machine.run("systemctl", "stop", gated.unit)
    took = time.monotonic() - began
    print(f"\nstopped after {took:.1f} s")
    assert took < 10
    assert gated.machine.show(gated.unit, "Result") == "success"
    flag.unlink()
    gated.machine.run("systemctl", "start", gated.unit)
    gated.heads(head + 1)
    gated.machine.eventually(lambda: "judge.py" not in gated.machine.run("ps", "ax", "-o", "args"))


def test_a_hook_in_its_unit_is_told_of_each_move_and_hold(gated: Served) -> None:
    head = gated.status()["head"]
    gated.machine.eventually(lambda: gated.status()["hooks"]["announce"]["owed"] == 0)
    lines = [line for line in said(gated, "hook").splitlines() if line.startswith("told of ")]
    told = list(dict.fromkeys(lines))  # at least once: what a stop cut off is told again
    folds = [f"told of fold {number} at {gated.state}/models/{number:06d}" for number in range(1, head + 1)]
    assert [line for line in told if " fold " in line] == folds
    assert "told of held None at /srv/gated/watch/crashes" in told
    assert "told of refused None at /srv/gated/watch/rude" in told
