"""A user's own service, under that user's own service manager."""

import pytest
from support.models import save_model, tiny_base
from support.systemd_machine import PYTHON, Machine

pytestmark = [pytest.mark.systemd, pytest.mark.root]
HOME = "/var/ada"


def test_a_user_installs_a_service_of_their_own(machine: Machine) -> None:
    machine.run("useradd", "-m", "-d", HOME, "ada")
    save_model(machine.root / HOME[1:] / "base", tiny_base())
    (machine.root / HOME[1:] / "watch").mkdir()
    machine.run("chown", "-R", "ada:", HOME)
    uid = machine.run("id", "-u", "ada").strip()
    machine.run("systemctl", "start", f"user@{uid}")
    theirs = ("env", f"XDG_RUNTIME_DIR=/run/user/{uid}", f"HOME={HOME}")
    config = f"{HOME}/own.toml"
    places = ("--base", f"{HOME}/base", "--watch", f"{HOME}/watch", "--state", f"{HOME}/state")
    machine.run(*theirs, PYTHON, "-m", "mergd", "init", "-c", config, *places, user="ada")
    service = (*theirs, PYTHON, "-m", "mergd", "service")
    machine.run(*service, "install", "-n", "own", "-c", config, "--user", user="ada")
    unit = (*theirs, "systemctl", "--user", "show", "-P")
    assert machine.run(*unit, "StatusText", "mergd@own", user="ada").startswith("waiting for checkpoints")
    machine.run(*service, "uninstall", "-n", "own", "-c", config, "--user", user="ada")
    assert machine.run(*unit, "ActiveState", "mergd@own", user="ada").strip() == "inactive"
    assert not (machine.root / HOME[1:] / ".config/systemd/user/mergd@.service").exists()
    assert (machine.root / HOME[1:] / "state").is_dir()
