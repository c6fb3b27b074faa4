"""mergd's commands as children that are killed: forked from one process that has the shim, and has imported everything.

`python -m faults.NAME` starts itself again with the shim (`with_shim`); from then on there is one thread, and each child
says in the shim's control file which step of the commit protocol it is at.
"""

import gc
import importlib
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, wraps
from pathlib import Path
from typing import Any, get_args

from faults.onehot import name_of, save
from faults.shim import Faults, compile_shim
from support.commands import PRELOADED, be_mergd
from support.merges import set_in

from mergd.plugins import registry
from mergd.state.committing import Commit

STEPS = ("draft", "seal", "rename", "transaction", "link", "sweep")  # the commit protocol's, in order
RARE = ("restore", "recover")  # and what is no part of a fold's life
MAKING = STEPS[: STEPS.index("sweep")]  # from the first write of a draft to the swap of the link
IN_ITSELF = (
    "link",
    "sweep",
    "restore",
    "recover",
)  # steps that end with their call; the others last until the next one begins
PATIENCE = 60.0  # seconds
FOLDER = "FAULTS_FOLDER"  # in the environment: where library and control file lie


def with_shim(module: str) -> Faults:
    """Return the shim's control; starts this program again, as `python -m MODULE`, if it does not have the shim yet."""
    if FOLDER not in os.environ:
        folder = Path(tempfile.mkdtemp(prefix="faults-"))
        with Faults(folder / "control") as faults:
            environment = os.environ | faults.environment(compile_shim(folder))
        environment |= {FOLDER: str(folder), "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        os.execve(sys.executable, [sys.executable, "-m", module, *sys.argv[1:]], environment)
    for name in PRELOADED:
        importlib.import_module(name)
    registry._points = cache(registry._points)  # it reads all packages' metadata each time: 40% of a child's life
    for group in get_args(registry.Group):
        registry.names(group)
    gc.freeze()  # so that a child's first collection copies no page
    folder = Path(os.environ[FOLDER])
    faults = Faults(folder / "control")
    for path in folder.iterdir():  # all of it is mapped
        path.unlink()
    folder.rmdir()
    return faults


@dataclass(frozen=True)
class Aim:
    """A call to be killed at: so many calls after a step has begun for the so manyth time."""

    step: str
    call: int
    time: int = 1


class Child:
    """One running command."""

    def __init__(self, pid: int, output: Path) -> None:
        self.pid, self._output = pid, output
        self.code: int | None = None  # negative: the signal that ended it

    def ended(self) -> bool:
        """Whether it has ended; then its code is there."""
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.code = os.waitstatus_to_exitcode(status) if pid else None
        return self.code is not None

    def wait(self, patience: float = PATIENCE) -> int:
        """Return its exit code."""
        until = time.monotonic() + patience
        while not self.ended():
            assert time.monotonic() < until, f"it still runs: {self.err}"
            time.sleep(0.001)
        assert self.code is not None
        return self.code

    def kill(self) -> None:
        """End it at once, if it still runs."""
        if not self.ended():
            os.kill(self.pid, signal.SIGKILL)
            self.wait()

    @property
    def out(self) -> str:
        return (self._output / "out").read_text()

    @property
    def err(self) -> str:
        return (self._output / "err").read_text()


class Counting:
    """A merge of counting checkpoints, made by the real command."""

    def __init__(self, root: Path, faults: Faults, archive: int = 0, **settings: Any) -> None:
        self.root, self.faults = root, faults
        self.watch, self.state, self.config = root / "watch", root / "state", root / "mergd.toml"
        self.watch.mkdir(parents=True)
        self._forked = 0
        faults.disarm()
        values = {"quiet": 0, "quiet_unsure": 0, "quiet_network": 0, "threads": 1, "lambda": 1.0, "keep_within": 0}
        sets = [word for key, value in (values | settings).items() for word in ("--set", f"{key}={json.dumps(value)}")]
        base = ("--base", save(root / "base"), "--watch", self.watch, "--state", self.state)
        self.run("init", *base, "--rule", "task_arithmetic", *sets)
        set_in(self.config, full=str(archive))  # bytes of sources that are pinned

    def drop(self, k: int) -> str:
        """Put checkpoint k into the watched folder, there at once; returns its name."""
        save(self.root / f"aside-{k}", k).rename(self.watch / name_of(k))
        return name_of(k)

    def start(
        self, command: str, *words: object, aim: Aim | None = None, broken: Callable[[], None] = lambda: None
    ) -> Child:
        """Start a command: forked, and killed where the shim is told, or at the aim."""
        assert len(os.listdir("/proc/self/task")) == 1, "a fork keeps one thread alone"
        self._forked += 1
        output = self.root / f"output-{self._forked}"
        output.mkdir()
        pid = os.fork()
        if pid:
            return Child(pid, output)
        code = 99
        try:
            broken()
            show_steps(self.faults, aim)
            be_mergd([command, "-c", *map(str, (self.config, *words))], str(self.root), str(output), {})
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 0
        finally:
            sys.stdout.flush()
            os._exit(code)

    def run(self, command: str, *words: object, expect: tuple[int, ...] = (0,)) -> Child:
        """Run a command to its end, with nothing done to it."""
        self.faults.disarm()
        child = self.start(command, *words)
        code = child.wait()
        assert code in expect, f"mergd {command} ended with {code}:\n{child.err}"
        return child


def show_steps(faults: Faults, aim: Aim | None = None) -> None:
    """Have each step of the commit protocol say when it begins; from the aimed one on, the shim counts down."""
    times = 0

    def shown(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(method)
        def step(*arguments: Any, **more: Any) -> Any:
            nonlocal times
            if faults.step == "recover" or (name == "link" and follows(*arguments)):  # recovery has a link of its own
                return method(*arguments, **more)
            faults.step = name
            times += aim is not None and name == aim.step
            if aim is not None and name == aim.step and times == aim.time:
                faults.fire_in(aim.call)
            result = method(*arguments, **more)
            if name in IN_ITSELF:
                faults.step = ""
            return result

        return step

    for name in (*STEPS, *RARE):
        setattr(Commit, name, shown(name, getattr(Commit, name)))


def follows(commit: Commit) -> bool:
    """Whether the link leads to the head already: then there is no step to be done."""
    head = commit._history.head()
    return head is None or commit._store.pointed() == head.number
