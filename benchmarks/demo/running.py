"""A real mergd daemon, started, watched and stopped through its own command line."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

QUIET = "300ms"  # how long a checkpoint's files must stay unchanged; short, as each arrives whole
PATIENCE = 60.0  # seconds, for any one step
POLL = 0.05  # seconds
LOG_LINES = 30  # of the daemon's log, shown on failure


class DemoFailed(Exception):
    """Something did not go as it should have; the message says what, for people."""


@dataclass(frozen=True)
class Published:
    """The head, and the model folder that it published."""

    version: int
    folder: Path


class Daemon:
    """A daemon with a watched folder, a state directory and a log of its own."""

    def __init__(self, folder: Path) -> None:
        self.watched = folder / "watched"
        self._incoming = folder / "incoming"  # on the same filesystem, and not watched
        self._state = folder / "state"
        # mergd takes no configuration from a place that others may write to, as a fresh clone is on some systems.
        self._private = TemporaryDirectory(prefix="mergd-demo-")
        self._config = Path(self._private.name) / "mergd.toml"
        self._log = folder / "daemon.log"
        self._process: subprocess.Popen[bytes] | None = None

    def init(self, base: Path) -> None:
        """Run `mergd init`."""
        self.watched.mkdir(parents=True)
        self._incoming.mkdir()
        where = ("--watch", str(self.watched), "--state", str(self._state), "--config", str(self._config))
        _command("init", "--base", str(base), *where)
        set_quiet(self._config, QUIET)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Run `mergd run` meanwhile; then SIGTERM must end it with exit code 0."""
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "mergd", "run", "-c", str(self._config)], stdout=log, stderr=log
            )
        try:
            yield
            self._stop()
        finally:
            self._process.kill()
            self._process.wait()
            self._private.cleanup()

    def drop(self, checkpoint: Path) -> Published:
        """Let a checkpoint arrive in the watched folder, whole at once, and return what is published after its fold."""
        before = self._status()
        shutil.copytree(checkpoint, self._incoming / checkpoint.name)
        (self._incoming / checkpoint.name).rename(self.watched / checkpoint.name)

        def moved(status: dict[str, Any]) -> bool:
            for state in ("refused", "held"):
                if status.get(state, 0) > before.get(state, 0):
                    raise DemoFailed(self._story(f"mergd counts {checkpoint.name} as {state}"))
            return status.get("head") != before.get("head") and status.get("folded", 0) > before.get("folded", 0)

        return self._published(moved, f"the fold of {checkpoint.name}")

    def roll_back(self, version: int) -> Published:
        """Run `mergd rollback`, which must lead to this version: the one before."""
        _command("rollback", "-c", str(self._config), "--pause")
        return self._published(lambda status: status.get("head") == version, f"the roll back to version {version}")

    def _published(self, ready: Callable[[dict[str, Any]], bool], what: str) -> Published:
        """Wait until the status is as wanted and the link `current` has followed the head."""
        current = self._state / "models" / "current"
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            status = self._status()
            if ready(status) and current.resolve().name == f"{status['head']:06d}":
                return Published(status["head"], current.resolve())
            if self._process is None or self._process.poll() is not None:
                raise DemoFailed(self._story(f"The daemon ended while the demo waited for {what}"))
            time.sleep(POLL)
        raise DemoFailed(self._story(f"The demo waited {PATIENCE:.0f} s in vain for {what}"))

    def _status(self) -> dict[str, Any]:
        """Return what status.json says; nothing before it was written first. It is replaced atomically."""
        try:
            status: dict[str, Any] = json.loads((self._state / "status.json").read_bytes())
        except FileNotFoundError:
            return {}
        return status

    def _stop(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        try:
            code = self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            raise DemoFailed(self._story(f"The daemon still ran {PATIENCE:.0f} s after SIGTERM")) from None
        if code:
            raise DemoFailed(self._story(f"The daemon ended with exit code {code} after SIGTERM, not 0"))

    def _story(self, what: str) -> str:
        """Return the sentence with the daemon's last status and the end of its log."""
        log = self._log.read_text(errors="replace").splitlines()[-LOG_LINES:]
        return "\n".join([f"{what}.", f"Last status: {json.dumps(self._status())}", f"End of {self._log}:", *log])


def set_quiet(config: Path, quiet: str) -> None:
    """Change the setting `quiet` in the configuration that `mergd init` wrote."""
    others = re.sub(r"(?m)^quiet\s*=.*\n", "", config.read_text())
    config.write_text(f'quiet = "{quiet}"\n{others}')


def _command(*arguments: str) -> None:
    """Run a mergd command to its end."""
    command, shown = [sys.executable, "-m", "mergd", *arguments], f"`mergd {' '.join(arguments)}`"
    try:
        ran = subprocess.run(command, check=False, capture_output=True, text=True, timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        raise DemoFailed(f"{shown} still ran after {PATIENCE:.0f} s.") from None
    if ran.returncode:
        raise DemoFailed(f"{shown} ended with exit code {ran.returncode}.\n{ran.stdout}{ran.stderr}")
