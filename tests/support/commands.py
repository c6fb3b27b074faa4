"""mergd's commands as real processes of their own.

They are forked from one process that has imported torch already, and run `mergd.daemon.cli.main` as the installed
command does: that takes a tenth of a second where a new interpreter takes three. `python_m_mergd` pays the whole price.
"""

import faulthandler
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

FORKING = multiprocessing.get_context("forkserver")
PRELOADED = [  # and what those import; the last are found by name, at the moment when they are needed
    "mergd.daemon.cli", "mergd.daemon.loop", "mergd.daemon.service", "mergd.daemon.initialise",
    "mergd.plugins.formats.model_folder", "mergd.plugins.formats.lone_file", "mergd.plugins.gates.sane",
    "mergd.plugins.rules.average", "mergd.plugins.rules.opcm", "mergd.plugins.rules.task_arithmetic",
    "mergd.plugins.sources.directory",
]  # fmt: skip
WITHOUT_EVENTS = "TEST_WITHOUT_EVENTS"  # in the environment: every merge of the tests relies on its repeated scan alone
PATIENCE = 60.0  # seconds; a machine that has much else to do is no failure of mergd's


def start_forking() -> None:
    """Start the process that commands are forked from, before a test could take it for a leak."""
    FORKING.set_forkserver_preload(PRELOADED)
    process = FORKING.Process(target=int)
    process.start()
    process.join()
    process.close()


def without_events() -> dict[str, Any]:
    """Return the settings with which no merge of the tests is woken by events, if the environment asks for that."""
    return {"events": False, "rescan": 0.2} if os.environ.get(WITHOUT_EVENTS) else {}


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """What it printed, read as JSON."""
        return json.loads(self.out)

    @property
    def complaint(self) -> list[str]:
        """The lines on stderr that are no log lines."""
        return [line for line in self.err.splitlines() if not line[:4].isdigit()]


class Command:
    """One running command."""

    def __init__(self, process: BaseProcess, output: Path) -> None:
        self._process, self._output = process, output

    @property
    def err(self) -> str:
        """What it has written to stderr so far."""
        path = self._output / "err"
        return path.read_text() if path.exists() else ""

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def runs(self) -> bool:
        return self._process.is_alive()

    def send(self, number: signal.Signals) -> None:
        """Send a signal to this process alone."""
        os.kill(self.pid, number)

    def stacks(self) -> str:
        """Return the end of what it has written to stderr, with the stacks of its threads now if it runs."""
        if self.runs:
            self.send(signal.SIGUSR2)
            time.sleep(0.5)
        return f"{self.err[-8000:]}\nexit code: {self._process.exitcode}"

    def ended(self) -> Ended:
        """Wait for its end."""
        self._process.join(PATIENCE)
        assert self._process.exitcode is not None, f"it still runs; so far: {self.err}"
        out = self._output / "out"  # not there if it was killed at once
        return Ended(self._process.exitcode, out.read_text() if out.exists() else "", self.err)

    def close(self) -> None:
        """End it, however it is."""
        if self._process.is_alive():
            self._process.kill()
        self._process.join()
        self._process.close()


def start(*arguments: object, at: Path, environment: Mapping[str, str] | None = None) -> Command:
    """Start `mergd ARGUMENTS` in folder `at`, with these changes to the environment."""
    FORKING.set_forkserver_preload(PRELOADED)
    output = at / f".output-{time.monotonic_ns()}"
    output.mkdir()
    words = [str(argument) for argument in arguments]
    if words[:1] == ["init"]:
        words += [word for key, value in without_events().items() for word in ("--set", f"{key}={json.dumps(value)}")]
    process = FORKING.Process(target=be_mergd, args=(words, str(at), str(output), dict(environment or {})))
    process.start()
    return Command(process, output)


def mergd(*arguments: object, at: Path, environment: Mapping[str, str] | None = None) -> Ended:
    """Run `mergd ARGUMENTS` in folder `at`, and return how it ended."""
    command = start(*arguments, at=at, environment=environment)
    try:
        return command.ended()
    finally:
        command.close()


@contextmanager
def running(*arguments: object, at: Path, environment: Mapping[str, str] | None = None) -> Iterator[Command]:
    """Run a command beside the test; it is killed at the end if it still runs."""
    command = start(*arguments, at=at, environment=environment)
    try:
        yield command
    except BaseException as error:
        error.add_note(
            f"--- mergd {' '.join(map(str, arguments))}: what it wrote, and what it was about\n{command.stacks()}"
        )
        raise
    finally:
        command.close()


def python_m_mergd(*arguments: object, at: Path) -> Ended:
    """Run `python -m mergd ARGUMENTS` in a new interpreter."""
    words = [sys.executable, "-m", "mergd", *map(str, arguments)]
    done = subprocess.run(words, cwd=at, capture_output=True, text=True, timeout=2 * PATIENCE, check=False)
    return Ended(done.returncode, done.stdout, done.stderr)


def eventually(look: Callable[[], Any], patience: float = PATIENCE) -> Any:
    """Look again and again until what is seen is true; returns it."""
    until = time.monotonic() + patience
    while not (seen := look()):
        assert time.monotonic() < until, f"never happened within {patience:g} s; seen last: {seen!r}"
        time.sleep(0.02)
    return seen


def be_mergd(words: list[str], at: str, output: str, environment: dict[str, str]) -> None:
    """Be the command: its words, its folder, its environment, its three files. Ends with its exit code."""
    os.chdir(at)
    os.environ |= environment
    for number, name, flags in ((0, os.devnull, os.O_RDONLY), (1, "out", os.O_CREAT | os.O_WRONLY | os.O_APPEND),
                                (2, "err", os.O_CREAT | os.O_WRONLY | os.O_APPEND)):  # fmt: skip
        fd = os.open(name if name == os.devnull else f"{output}/{name}", flags, 0o600)
        os.dup2(fd, number)
        os.close(fd)
    sys.stdin = os.fdopen(0)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1) for number in (1, 2))
    sys.argv = ["mergd", *words]
    signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever runs the tests in the background ignores it
    faulthandler.register(signal.SIGUSR2, sys.stderr)
    from mergd.daemon.cli import main

    main()
