"""An installed service under a real systemd: it starts, folds, hangs, is killed, reloads and stops; others see what they may."""

import json
import random
import time
from collections.abc import Callable, Iterator

import pytest
import torch
from support.models import load_model
from support.served import Served
from support.systemd_machine import PYTHON, Machine

pytestmark = [pytest.mark.systemd, pytest.mark.root]
UNIT, STATE = "mergd@llama.service", "/var/lib/mergd/llama"
WATCHDOG = 8  # seconds
KILLS = 20
HANGING = """
import pathlib, time
from mergd.state.records import ADMITTED
class Hang:
    def judge(self, drafted):
        while pathlib.Path("/srv/llama/hang").exists():
            time.sleep(0.05)
        return ADMITTED
"""


@pytest.fixture(scope="module")
def served(machine: Machine) -> Served:
    """A merge that was initialised and installed, as docs/service.md says; one checkpoint is folded."""
    generator = torch.Generator().manual_seed(0)
    weights = {f"layer.{k}.weight": torch.randn(256, 256, generator=generator).to(torch.bfloat16) for k in range(4)}
    served = Served(machine, "llama", weights)
    site = next((machine.root / "opt/mergd/lib").glob("python3*")) / "site-packages"
    (site / "hanging.py").write_text(HANGING)
    (site / "hanging-1.dist-info").mkdir()
    (site / "hanging-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: hanging\nVersion: 1\n")
    (site / "hanging-1.dist-info" / "entry_points.txt").write_text("[mergd.gates]\nhang = hanging:Hang\n")
    served.init("--set", "out_dtype=bfloat16", "--set", 'gates=["hang"]')
    machine.mergd("service", "install", "-n", "llama")
    return served


@pytest.fixture(autouse=True)
def healthy(served: Served) -> Iterator[None]:
    """Before each test it runs, and has nothing to do."""
    served.machine.run("systemctl", "start", UNIT)
    served.quiet()
    yield
    (served.srv / "hang").unlink(missing_ok=True)
    served.unset()
    served.machine.run("systemctl", "reset-failed", code=None)


def test_a_start_waits_until_it_is_ready(served: Served) -> None:
    served.machine.run("systemctl", "stop", UNIT)
    served.machine.run("systemctl", "start", "--no-block", UNIT)
    assert served.machine.show(UNIT, "ActiveState") == "activating"
    served.machine.run("systemctl", "start", UNIT)
    assert served.machine.show(UNIT, "ActiveState") == "active"
    assert served.status()["daemon"]["pid"] == served.pid or served.status()["daemon"]
    assert served.machine.show(UNIT, "StatusText").startswith("waiting for checkpoints")


def test_bfloat16_is_folded_under_memory_deny_write_execute(served: Served) -> None:
    served.drop()
    served.heads(served.quiet())
    assert served.machine.show(UNIT, "MemoryDenyWriteExecute") == "yes"
    model = load_model(served.machine.root / STATE[1:] / "models" / f"{served.status()['head']:06d}")
    assert {tensor.dtype for tensor in model.values()} == {torch.bfloat16}


def test_another_user_opens_the_model_and_nothing_else(served: Served) -> None:
    served.drop()
    served.quiet()
    root = served.machine.root
    (root / "etc/mergd/llama.hub-read").write_text("hf_secret")
    (root / "etc/mergd/llama.hub-read").chmod(0o600)
    (root / STATE[1:] / "spool").mkdir(exist_ok=True)

    def reads(path: str) -> bool:
        return not served.machine.run("sh", "-c", f"cat {path} > /dev/null || exit 1", user="daemon", code=None)

    assert reads(f"{STATE}/models/current/model.safetensors")
    assert reads(f"{STATE}/models/current/config.json")
    assert reads(f"{STATE}/status.json")
    for secret in ("mergd.db", "versions/000001/manifest.json", "drafts/.", "spool/.", "backups/."):
        assert not reads(f"{STATE}/{secret}"), secret
    assert not reads("/etc/mergd/llama.hub-read")
    open_ones = served.machine.run("find", STATE, "-perm", "/o+w", "-not", "-type", "l")
    assert not open_ones.strip()


def test_a_reload_keeps_the_daemon_and_its_queue(served: Served) -> None:
    pid, restarts = served.pid, served.restarts
    (served.srv / "hang").touch()
    served.drop(), served.drop(), served.drop()
    served.machine.eventually(lambda: served.status()["waiting"] == 3)
    served.machine.run("systemctl", "reload", UNIT)
    assert served.status()["waiting"] == 3
    config = served.machine.root / "etc/mergd/llama.toml"
    good = config.read_text()
    config.write_text(good.replace("quiet = 0.1", 'quiet = "soon"'))
    assert config.read_text() != good
    served.machine.run("systemctl", "reload", UNIT)
    served.machine.eventually(lambda: "the old configuration is kept" in served.machine.show(UNIT, "StatusText"))
    config.write_text(good)
    served.machine.run("systemctl", "reload", UNIT)
    (served.srv / "hang").unlink()
    served.quiet()
    assert (served.pid, served.restarts) == (pid, restarts)
    served.machine.eventually(lambda: "kept" not in served.machine.show(UNIT, "StatusText"))


def hang_in_a_fold(served: Served) -> None:
    (served.srv / "hang").touch()
    name = served.drop()
    served.machine.eventually(lambda: served.status()["doing"].startswith(f"{name}: gates"))


def hang_whole(served: Served) -> None:
    served.machine.run("systemctl", "kill", "-s", "STOP", "--kill-whom=main", UNIT)


@pytest.mark.parametrize("hang", [hang_in_a_fold, hang_whole])
def test_what_hangs_is_restarted_within_twice_the_watchdogs_time(
    served: Served, hang: Callable[[Served], None]
) -> None:
    served.set(WatchdogSec=str(WATCHDOG), RestartSec="100ms")
    served.machine.run("systemctl", "restart", UNIT)
    restarts = served.restarts
    time.sleep(WATCHDOG + 1)  # it lives longer than that while it has nothing to do
    assert served.restarts == restarts
    hang(served)
    began = time.monotonic()
    served.machine.eventually(lambda: served.restarts > restarts)
    took = time.monotonic() - began
    print(f"\nrestarted after {took:.1f} s; WatchdogSec={WATCHDOG}")
    assert WATCHDOG * 0.5 < took < 2 * WATCHDOG
    (served.srv / "hang").unlink(missing_ok=True)
    served.quiet()


def test_twenty_kills_lose_nothing(served: Served) -> None:
    served.set(StartLimitIntervalSec="0", RestartSec="100ms")
    served.machine.run("systemctl", "restart", UNIT)
    chance, restarts = random.Random(1), served.restarts
    for number in range(KILLS):
        if number % 3 == 0:
            served.drop()
        time.sleep(chance.uniform(0, 1))
        served.machine.run("systemctl", "kill", "-s", "KILL", "--kill-whom=main", UNIT, code=None)
        served.machine.eventually(lambda seen=number: served.restarts > restarts + seen)  # type: ignore[misc]
        served.machine.eventually(lambda: served.machine.show(UNIT, "ActiveState") == "active")
    for row in json.loads(served.machine.mergd("list", "-n", "llama", "--json")):
        if row["state"] == "held":  # three of its folds were killed
            served.machine.mergd("approve", "-n", "llama", row["place"])
    folded = served.quiet()
    log = json.loads(served.machine.mergd("log", "-n", "llama", "--json"))
    assert sorted(entry["checkpoint"]["name"] for entry in log) == sorted(f"c{k + 1}" for k in range(folded))
    served.machine.mergd("verify", "-n", "llama")
    said = served.machine.run("journalctl", "-u", UNIT, "--no-pager")
    assert "Traceback" not in said
    assert "unforeseen" not in said


def test_a_stop_in_the_middle_of_a_fold_takes_less_than_ten_seconds(served: Served) -> None:
    (served.srv / "hang").touch()
    served.drop()
    served.machine.eventually(lambda: served.status()["doing"].startswith("c"))
    began = time.monotonic()
    served.machine.run("systemctl", "stop", UNIT)
    took = time.monotonic() - began
    print(f"\nstopped after {took:.1f} s")
    assert took < 10
    assert served.machine.show(UNIT, "Result") == "success"
    assert served.machine.show(UNIT, "ActiveState") == "inactive"
    (served.srv / "hang").unlink()


def test_a_memory_limit_is_set_and_leaves_room(served: Served) -> None:
    cgroup = served.machine.root / "sys/fs/cgroup/memory" / served.machine.show(UNIT, "ControlGroup").lstrip("/")
    if not cgroup.exists():
        pytest.skip("this machine has one hierarchy")
    most, limit = (int((cgroup / f"memory.{name}").read_text()) for name in ("max_usage_in_bytes", "limit_in_bytes"))
    print(f"\npeak: {most / 1e6:.0f} MB of {limit / 1e6:.0f} MB")
    assert 0 <= int(served.machine.show(UNIT, "MemoryMax")) - limit < 4096  # whole pages
    assert most < 0.9 * limit


def test_systemd_finds_the_installed_unit_sound_and_safe(served: Served) -> None:
    assert served.machine.run("systemd-analyze", "verify", "--man=no", UNIT) == ""
    served.machine.run("systemd-analyze", "security", "--threshold=5", UNIT)


def test_an_interpreter_that_the_service_cannot_run_is_refused(served: Served) -> None:
    served.machine.run("cp", "-r", "/opt/mergd", "/var/tmp/mergd")
    words = ("-m", "mergd", "service", "install", "-n", "llama")
    said = served.machine.run("/var/tmp/mergd/bin/python", *words, code=78)
    assert "does not see" in said
    assert "python3 -m venv /opt/mergd" in said
    served.machine.run("cp", "-r", "/opt/mergd", "/opt/closed")
    served.machine.run("chmod", "0700", "/opt/closed")
    assert "cannot run" in served.machine.run("/opt/closed/bin/python", *words, code=78)


def test_installing_again_changes_nothing_and_restarts_nothing(served: Served) -> None:
    pid = served.pid
    assert "wrote" not in served.machine.mergd("service", "install", "-n", "llama")
    assert served.pid == pid


def test_uninstalling_leaves_what_is_the_users_and_purging_asks(served: Served) -> None:
    served.set(Nice="1")
    said = served.machine.mergd("service", "uninstall", "-n", "llama")
    for left in (STATE, "/etc/mergd/llama.toml", "the user mergd"):
        assert left in said
    assert (served.machine.root / served.drop_in).exists()  # the administrator's
    assert not (served.machine.root / "etc/systemd/system/mergd@.service").exists()
    assert served.machine.show(UNIT, "ActiveState") == "inactive"
    watched = sorted(path.name for path in (served.srv / "watch").iterdir())
    served.machine.mergd("service", "install", "-n", "llama")
    purging = f"echo {{}} | {PYTHON} -m mergd service uninstall -n llama --purge"
    served.machine.run("sh", "-c", purging.format("other"), code=2)
    assert served.machine.show(UNIT, "ActiveState") == "active"
    served.machine.run("sh", "-c", purging.format("llama"))
    assert not (served.machine.root / STATE[1:]).exists()
    assert not (served.machine.root / "etc/mergd/llama.toml").exists()
    assert sorted(path.name for path in (served.srv / "watch").iterdir()) == watched
    served.init("--existing", "ignore")
    served.machine.mergd("service", "install", "-n", "llama")
    served.dropped = 0
