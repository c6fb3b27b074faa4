"""A gate's program in its own unit under a real systemd: what it may, what it may not, and what becomes of one that misbehaves."""

import json
from typing import Any

import pytest
from support.models import save_model, tiny_base
from support.systemd_machine import PYTHON, Machine

pytestmark = [pytest.mark.systemd, pytest.mark.root]
STATE, BASE = "/var/lib/mergd/judged", "/var/tmp/judged-base"  # where a unit sees nothing that is not bound
JUDGE = """
import json, os, pathlib, sys, time
asked = json.load(sys.stdin)

def can(act):
    try:
        act()
        return True
    except OSError:
        return False

match asked["do"]:
    case "eat":
        bytearray(10**9)
    case "hang":
        time.sleep(600)
    case "crash":
        os.abort()
    case "product":
        import torch
        a = torch.randn(64, 64, dtype=torch.bfloat16)
        print(json.dumps(str((a @ a).dtype)))
    case "look":
        state, draft = pathlib.Path(asked["state"]), pathlib.Path(asked["draft"])
        print(json.dumps({
            "uid": os.getuid() not in (0, asked["uid"]),
            "reads the draft": can((draft / "model.safetensors").read_bytes),
            "reads the base model": can(pathlib.Path(asked["base"], "model.safetensors").read_bytes),
            "writes the draft": can((draft / "new").touch),
            "reads the database": can((state / "mergd.db").read_bytes),
            "reads the configuration's folder": can(lambda: os.listdir("/etc/mergd")),
            "asks the daemon": can(lambda: os.listdir("/run/mergd")),
            "has a credential": "CREDENTIALS_DIRECTORY" in os.environ,
            "sees a network": len(os.listdir("/sys/class/net")) > 1,
        }))
"""
ASK = """
import json, sys
from pathlib import Path
from mergd.plugins.programs import Unit
ran = Unit(Path(sys.argv[1])).run(sys.argv[2].encode(), float(sys.argv[3]), lambda: False)
print(json.dumps([ran.exit, ran.output.decode(), ran.last_line]))
"""


@pytest.fixture(scope="module")
def socket(machine: Machine) -> str:
    """The socket at which the gate of an installed merge is asked."""
    base = save_model(machine.root / BASE[1:], tiny_base())
    for path in (base, *base.iterdir()):
        path.chmod(0o755)
    (machine.root / "srv" / "judged").mkdir()
    machine.mergd("init", "-n", "judged", "--base", BASE, "--watch", "/srv/judged", "--state", STATE)
    machine.mergd("service", "install", "-n", "judged")
    (machine.root / "usr/local/bin/judge.py").write_text(JUDGE)
    (machine.root / "srv" / "ask.py").write_text(ASK)
    limits = ("--memory", "400M", "--seconds", "60")
    words = ("service", "gate", "-n", "judged", "--program", "evals", *limits, "--", PYTHON, "/usr/local/bin/judge.py")
    said = machine.mergd(*words)
    assert '[gate.evals] of the configuration: socket = "/run/mergd-programs/judged/gate-evals.sock"' in said
    return "/run/mergd-programs/judged/gate-evals.sock"


def ask(machine: Machine, socket: str, request: dict[str, Any], seconds: int = 60) -> list[Any]:
    """Ask as the daemon does, and as its user; returns exit code, answer and last line."""
    said = machine.run(PYTHON, "/srv/ask.py", socket, json.dumps(request), seconds, user="mergd")
    found: list[Any] = json.loads(said)
    return found


def test_it_sees_the_drafted_model_and_no_secret(machine: Machine, socket: str) -> None:
    draft = f"{STATE}/drafts/000001/model"
    for folder in (f"{STATE}/drafts", f"{STATE}/drafts/000001"):
        machine.run("install", "-d", "-m", "0711", "-o", "mergd", folder)
    machine.run("install", "-d", "-m", "0755", "-o", "mergd", draft)
    machine.run("install", "-m", "0444", "-o", "mergd", f"{BASE}/model.safetensors", draft)
    uid = int(machine.run("id", "-u", "mergd"))
    code, answer, _ = ask(machine, socket, {"do": "look", "state": STATE, "draft": draft, "base": BASE, "uid": uid})
    assert code == 0
    found = json.loads(answer)
    assert [what for what, so in found.items() if so] == ["uid", "reads the draft", "reads the base model"]


def test_stock_torch_multiplies_in_bfloat16(machine: Machine, socket: str) -> None:
    assert ask(machine, socket, {"do": "product"})[:2] == [0, '"torch.bfloat16"\n']


@pytest.mark.parametrize("what", ["eat", "hang", "crash"])
def test_one_that_misbehaves_ends_alone(machine: Machine, socket: str, what: str) -> None:
    pid = machine.show("mergd@judged.service", "MainPID")
    code, answer, _ = ask(machine, socket, {"do": what}, 5 if what == "hang" else 60)
    assert code != 0
    assert not answer
    assert machine.show("mergd@judged.service", "MainPID") == pid
    machine.eventually(lambda: "judge.py" not in machine.run("ps", "ax", "-o", "args"))


def test_nobody_else_may_have_it_run(machine: Machine, socket: str) -> None:
    said = machine.run(PYTHON, "/srv/ask.py", socket, "{}", 5, user="daemon")
    assert "Permission denied" in said


def test_its_units_go_with_the_merge(machine: Machine, socket: str) -> None:
    said = machine.mergd("service", "uninstall", "-n", "judged")
    assert "removed /etc/systemd/system/mergd-gate-judged--evals.socket" in said
    assert not (machine.root / socket[1:]).exists()
