"""A merge that is a service on a booted machine: the folders that it watches and reads, its unit, and what it says."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from support.models import Model, fine_tuned, save_model
from support.systemd_machine import PYTHON, Machine

AT_ONCE = ("--set", "quiet=0.1s", "--set", "quiet_unsure=0.1s")


class Served:
    """One merge of the machine, and what lies around it: its base model is made here, in /srv/NAME/base."""

    def __init__(self, machine: Machine, name: str, base: Model) -> None:
        self.machine, self.name, self.base, self.dropped = machine, name, base, 0
        self.unit, self.state = f"mergd@{name}.service", f"/var/lib/mergd/{name}"
        self.srv, self.config = machine.root / "srv" / name, machine.root / "etc/mergd" / f"{name}.toml"
        self.drop_in = f"etc/systemd/system/{self.unit}.d/test.conf"
        self.srv.mkdir()
        open_up(save_model(self.srv / "base", base))
        (self.srv / "watch").mkdir()

    def init(self, *words: str, **environment: str) -> None:
        """Initialise it, as docs/service.md says."""
        places = ("--base", f"/srv/{self.name}/base", "--watch", f"/srv/{self.name}/watch", "--state", self.state)
        given = [f"{key}={value}" for key, value in environment.items()]
        self.machine.run("env", *given, PYTHON, "-m", "mergd", "init", "-n", self.name, *places, *AT_ONCE, *words)

    def mergd(self, *words: object, code: int | None = 0) -> str:
        """Run a command of mergd about it, as root; `service install` is one."""
        named = 2 if words[0] == "service" else 1
        return self.machine.mergd(*words[:named], "-n", self.name, *words[named:], code=code)

    def drop(self, name: str = "", *, admit: Callable[[Path], None] | None = None) -> str:
        """Put a checkpoint into the watched folder, there at once; it is anybody's to read unless `admit` says whose."""
        self.dropped += 1
        name = name or f"c{self.dropped}"
        aside = save_model(self.srv / f"aside-{name}", fine_tuned(self.base, self.dropped))
        (admit or open_up)(aside)
        aside.rename(self.srv / "watch" / name)
        return name

    def row(self, name: str) -> dict[str, Any]:
        """Return what is known of a checkpoint."""
        rows = json.loads(self.mergd("list", "--json"))
        (found,) = (row for row in rows if row["name"] == name)
        return dict(found)

    def status(self) -> dict[str, Any]:
        """Return what status.json says."""
        found: dict[str, Any] = json.loads((self.machine.root / self.state[1:] / "status.json").read_text())
        return found

    def heads(self, version: int) -> None:
        """Wait for a version to be the head."""
        self.machine.eventually(lambda: self.status()["head"] == version)

    def quiet(self) -> int:
        """Wait until nothing is to be done; returns how many are folded."""

        def done() -> bool:
            now = self.status()
            return bool(now["daemon"]) and now["folded"] == self.dropped and not now["doing"].startswith("c")

        self.machine.eventually(done)
        return self.dropped

    def change(self, old: str, new: str) -> None:
        """Change the configuration, and have the daemon read it."""
        text = self.config.read_text()
        assert old in text
        self.config.write_text(text.replace(old, new))
        self.machine.run("systemctl", "reload", self.unit)

    def set(self, **lines: str) -> None:
        """Change the unit by a drop-in of the administrator's."""
        text = "".join(
            f"[{'Unit' if key.startswith('Start') else 'Service'}]\n{key}={value}\n" for key, value in lines.items()
        )
        (self.machine.root / self.drop_in).write_text(text)
        self.machine.run("systemctl", "daemon-reload")

    def unset(self) -> None:
        """Take that drop-in away."""
        (self.machine.root / self.drop_in).unlink(missing_ok=True)
        self.machine.run("systemctl", "daemon-reload")

    @property
    def pid(self) -> int:
        """The daemon's, on the machine."""
        return int(self.machine.show(self.unit, "MainPID"))

    @property
    def restarts(self) -> int:
        """How often systemd has started it anew."""
        return int(self.machine.show(self.unit, "NRestarts"))


def open_up(folder: Path) -> None:
    """Let everybody read a checkpoint; safetensors makes its files 0600."""
    for path in folder.iterdir():
        path.chmod(0o644)
    folder.chmod(0o755)
