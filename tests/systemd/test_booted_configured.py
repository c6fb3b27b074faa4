"""Services as their configurations ask for them: as a trainer's user, with figures, and with the Hub and its tokens."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import repository
from support.models import fine_tuned, save_model, tiny_base
from support.scraping import scrape
from support.served import Served
from support.systemd_machine import PYTHON, Machine

pytestmark = [pytest.mark.systemd, pytest.mark.root]
READ, WRITE, PORT = "hf_canaryread0123456789", "hf_canarywrite0123456789", 8008
HUB = f"http://127.0.0.1:{PORT}"
# A Hub of this machine's own: what lies in a folder of /srv/hub/new becomes a private fine-tune of acme/base.
SERVE = f"""
import pathlib, sys, time
sys.path.insert(0, "/srv/hub")
from fakehub import Account, FakeHub
with FakeHub(port={PORT}, keep_alive=True) as hub:
    hub.tokens |= {{"{READ}": Account("ada", ("acme",), write=False), "{WRITE}": Account("ada", ("acme",))}}
    known = set()
    while True:
        for folder in set(pathlib.Path("/srv/hub/new").iterdir()) - known:
            files = {{path.name: path.read_bytes() for path in folder.iterdir()}}
            hub.push(f"acme/{{folder.name}}", files, tags=["base_model:finetune:acme/base"], private=True)
            known.add(folder)
        time.sleep(0.1)
"""
ASK = f"""
import sys, urllib.request
from urllib.error import HTTPError
request = urllib.request.Request(sys.argv[1], headers={{"Authorization": "Bearer {WRITE}"}} if "{PORT}" in sys.argv[1] else {{}})
try:
    answer = urllib.request.urlopen(request)
except HTTPError as error:
    answer = error
print(answer.status, answer.read().decode())
"""
JUDGE = """
import json, os, sys
asked = json.load(sys.stdin)
size = os.stat(asked["model"] + "/model.safetensors").st_size
seen = [name for name in ("/etc/mergd", "/run/credentials", "/var/lib/mergd/hubbed/spool") if os.access(name, os.R_OK)]
sys.stderr.write(f"seen: {seen}\\n")
print(json.dumps({"protocol": 1, "metrics": {"size": {"value": size, "higher_is_better": False, "n": 1}}}))
"""


def get(machine: Machine, url: str) -> str:
    """Ask a port of the machine."""
    return machine.run(PYTHON, "-c", ASK, url, code=None)


# -------------------------------------------------------------------------------------------- a trainer's user, figures


@pytest.fixture(scope="module")
def trained(machine: Machine) -> Served:
    """A merge of what a trainer keeps to itself, with figures in a file and at a port."""
    machine.run("useradd", "--system", "--user-group", "trainer")
    trained = Served(machine, "trained", tiny_base())
    folder = machine.root / "var/lib/prometheus/node-exporter"
    folder.mkdir(parents=True)
    machine.run("chown", "trainer:", "/var/lib/prometheus/node-exporter", "/srv/trained/watch")
    machine.run("chmod", "0700", "/srv/trained/watch")
    listen = ("--set", "metrics.listen=127.0.0.1:9190")
    trained.init("--set", "metrics.file=/var/lib/prometheus/node-exporter/mergd-trained.prom", *listen)
    trained.mergd("service", "install", "--user-name", "trainer")
    return trained


def test_a_trainers_own_files_are_folded_by_its_user(trained: Served) -> None:
    trained.drop(admit=lambda folder: close(trained.machine, folder))
    trained.heads(1)
    assert trained.machine.run("ps", "-o", "user=", "-p", trained.pid).strip() == "trainer"
    assert (
        trained.machine.run("stat", "-c", "%U", trained.state, f"{trained.state}/mergd.db").split() == ["trainer"] * 2
    )


def close(machine: Machine, folder: Path) -> None:
    for path in folder.iterdir():
        path.chmod(0o600)
    folder.chmod(0o700)
    machine.run("chown", "-R", "trainer:", f"/srv/trained/{folder.name}")


def test_figures_are_in_the_file_and_at_the_port(trained: Served) -> None:
    trained.drop(admit=lambda folder: close(trained.machine, folder))
    head = trained.status()["head"]
    trained.heads(head + 1)
    file = trained.machine.root / "var/lib/prometheus/node-exporter/mergd-trained.prom"
    trained.machine.eventually(lambda: scrape(file.read_text()).value("mergd_head_version") == head + 1)
    assert file.stat().st_mode & 0o777 == 0o644
    status, _, text = get(trained.machine, "http://127.0.0.1:9190/metrics").partition(" ")
    assert status == "200"
    assert scrape(text).value("mergd_head_version", merge="trained") == head + 1
    assert get(trained.machine, "http://127.0.0.1:9190/healthz").strip() == "200 ok"
    assert get(trained.machine, "http://127.0.0.1:9190/mergd.db").startswith("404")


def test_a_program_of_that_merge_is_asked_by_that_user(trained: Served) -> None:
    trained.mergd("service", "hook", "--program", "note", "--", "/bin/cat")
    socket = "/run/mergd-programs/trained/hook-note.sock"
    assert trained.machine.run("stat", "-c", "%U %a", socket).split() == ["trainer", "600"]
    trained.config.write_text(f'{trained.config.read_text()}\n[hook.note]\nsocket = "{socket}"\n')
    trained.machine.run("systemctl", "reload", trained.unit)
    trained.drop(admit=lambda folder: close(trained.machine, folder))
    trained.machine.eventually(lambda: trained.status()["hooks"].get("note", {}).get("done"))


# --------------------------------------------------------------------------------------------------------------- the Hub


@pytest.fixture(scope="module")
def hubbed(machine: Machine) -> Iterator[Served]:
    """A merge of a namespace of private repositories, whose versions are pushed, and which a gate measures."""
    hub = machine.root / "srv/hub"
    (hub / "new").mkdir(parents=True)
    shutil.copytree(repository.ROOT / "tests/hub_server", hub / "hub_server")
    shutil.copy(repository.ROOT / "tests/fakehub.py", hub)
    (hub / "serve.py").write_text(SERVE)
    (hub / "judge.py").write_text(JUDGE)
    machine.run("systemd-run", "--unit=fake-hub", PYTHON, "/srv/hub/serve.py")
    machine.eventually(lambda: get(machine, f"{HUB}/api/whoami-v2").startswith("200"))
    hubbed = Served(machine, "hubbed", tiny_base())
    for name, token in (("hub-read", READ), ("hub-write", WRITE)):
        path = machine.root / f"etc/mergd/hubbed.{name}"
        path.parent.mkdir(exist_ok=True)
        path.write_text(token)
        path.chmod(0o600)
    table = {"base": "acme/base", "poll": "1s", "publish_to": "acme/merged", "write_token": "hub-write"}
    chosen = [word for key, value in table.items() for word in ("--set", f"hub.{key}={value}")]
    asked = {"HF_ENDPOINT": HUB, "HF_TOKEN_PATH": "/etc/mergd/hubbed.hub-read"}
    hubbed.init("--hub", "acme", "--existing", "fold", *chosen, **asked)
    (machine.root / hubbed.drop_in).parent.mkdir()
    hubbed.set(Environment=f"HF_ENDPOINT={HUB}")
    hubbed.mergd("service", "install")
    yield hubbed
    machine.run("systemctl", "stop", "fake-hub", hubbed.unit)


def fine_tune(hubbed: Served, name: str, seed: int) -> None:
    """Have a fine-tune pushed."""
    aside = save_model(hubbed.machine.root / "srv/hub" / name, fine_tuned(hubbed.base, seed))
    aside.rename(hubbed.machine.root / "srv/hub/new" / name)


def test_a_private_namespace_is_folded_and_pushed_with_credentials(hubbed: Served) -> None:
    fine_tune(hubbed, "ft-1", 1)
    hubbed.heads(1)
    assert hubbed.machine.show(hubbed.unit, "PrivateUsers") == "yes"
    hubbed.machine.eventually(lambda: hubbed.status()["pushed"])
    assert get(hubbed.machine, f"{HUB}/api/models/acme/merged").startswith("200")


def test_neither_the_configuration_nor_the_processes_show_a_token(hubbed: Served) -> None:
    shown = hubbed.config.read_text() + hubbed.machine.run("systemctl", "cat", hubbed.unit)
    shown += (hubbed.machine.root / "proc" / str(hubbed.pid) / "environ").read_text()
    shown += hubbed.machine.run("journalctl", "-u", hubbed.unit, "--no-pager") + json.dumps(hubbed.status())
    assert "HF_TOKEN_PATH=" in shown
    assert READ not in shown
    assert WRITE not in shown


def test_a_gate_sees_a_base_model_of_the_hub_and_nothing_else_of_the_cache(hubbed: Served) -> None:
    text = hubbed.config.read_text()
    line = 'base_model = "/srv/hubbed/base"'
    assert line in text
    hubbed.config.write_text(text.replace(line, 'base_model = "acme/base"'))
    words = ("service", "gate", "--program", "sizes", "--dry-run", "--", PYTHON, "/srv/hub/judge.py")
    written = hubbed.mergd(*words)
    assert " -/var/cache/mergd/hubbed/hf/hub/models--acme--base\n" in written
    hubbed.config.write_text(text)


def test_a_gate_of_that_merge_sees_neither_tokens_nor_spool(hubbed: Served) -> None:
    hubbed.mergd("service", "gate", "--program", "sizes", "--", PYTHON, "/srv/hub/judge.py")
    socket = "/run/mergd-programs/hubbed/gate-sizes.sock"
    hubbed.config.write_text(
        f'{hubbed.config.read_text()}\n[gate.sizes]\nsocket = "{socket}"\ndrop = 1e6\ntotal_drop = 1e6\n'
    )
    hubbed.machine.run("systemctl", "reload", hubbed.unit)
    head = hubbed.status()["head"]
    fine_tune(hubbed, "ft-2", 2)
    hubbed.heads(head + 1)
    log = hubbed.machine.run("journalctl", "-u", "mergd-gate-hubbed--*", "-o", "cat", "--no-pager")
    assert {line for line in log.splitlines() if line.startswith("seen: ")} == {"seen: []"}
