"""The fault shim from Python: compiling it, arming it, and reading what it saw (shim.c says what it does).

A process that was started with `environment(...)` is watched, with all that it forks:

    library = compile_shim(folder)
    with Faults(folder / "control") as faults:
        faults.arm(state)                                   # count and log only
        subprocess.run(command, env=os.environ | faults.environment(library))
        calls = faults.calls()                              # [Call(1, "create", "lock", ""), ...]
        faults.arm(state, "kill", first=7)                  # and now kill -9 at the seventh
        faults.arm(state, "fail", first=7, last=FOR_EVER, error=errno.ENOSPC, kinds=("write", "create"))
"""

import ctypes
import mmap
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

SOURCE = Path(__file__).with_name("shim.c")
KINDS = ("write", "fsync", "fdatasync", "rename", "link", "symlink", "unlink", "rmdir", "mkdir", "truncate", "allocate",
         "copy", "create")  # fmt: skip
ACTIONS = ("log", "kill", "fail", "tear", "short")  # tear: half of a write, then the end; short: half of it, no error
LOG_BYTES, PATH_MAX = 8 << 20, 4096
FOR_EVER = 2**64 - 1


class Control(ctypes.Structure):
    """The control file; the same fields as shim.c's struct control."""

    _fields_ = (
        ("armed", ctypes.c_uint32),
        ("kinds", ctypes.c_uint32),
        ("action", ctypes.c_uint32),
        ("error", ctypes.c_int32),
        ("first", ctypes.c_uint64),
        ("last", ctypes.c_uint64),
        ("count", ctypes.c_uint64),
        ("fired", ctypes.c_uint64),
        ("log_used", ctypes.c_uint64),
        ("state", ctypes.c_char * PATH_MAX),
        ("step", ctypes.c_char * 64),
    )


@dataclass(frozen=True)
class Call:
    """One call that was seen; paths are relative to the state, `other` is a rename's or link's second one."""

    number: int
    kind: str
    path: str
    other: str = ""
    step: str = ""  # where the process said that it was

    def __str__(self) -> str:
        return f"{self.kind} {self.path}" + (f" -> {self.other}" if self.other else "")


class Faults:
    """A control file, mapped here as it is by the processes that are watched: counts and log outlive their SIGKILL."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("a+b") as file:
            file.truncate(ctypes.sizeof(Control) + LOG_BYTES)
            self._map = mmap.mmap(file.fileno(), 0)
        self._control = Control.from_buffer(self._map)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Unmap it; those that are watched have their own mapping."""
        del self._control
        self._map.close()

    def environment(self, library: Path) -> dict[str, str]:
        """Return what a process that is to be watched needs in its environment."""
        return {"LD_PRELOAD": str(library), "FAULTS_CONTROL": str(self.path)}

    def arm(
        self,
        state: Path,
        action: str = "log",
        first: int = 1,
        last: int | None = None,
        *,
        error: int = 0,
        kinds: Iterable[str] = KINDS,
    ) -> None:
        """Count from zero the calls of these kinds under `state`; do the action at the first (to the last) of them."""
        control = self._control
        control.armed = 0
        control.state = str(state.resolve()).encode()
        control.kinds = sum(1 << KINDS.index(kind) for kind in kinds)
        control.action, control.error = ACTIONS.index(action), error
        control.first, control.last = first, first if last is None else last
        control.count = control.fired = control.log_used = 0
        control.step = b""
        control.armed = 1

    def fire_in(self, calls: int) -> None:
        """Do the action at the so manyth call from now on."""
        self._control.first = self._control.last = self._control.count + calls

    def disarm(self) -> None:
        """Let every call go by; counts and log stay."""
        self._control.armed = 0

    @property
    def count(self) -> int:
        """How many calls were seen."""
        return int(self._control.count)

    @property
    def fired(self) -> int:
        """How often the action was done."""
        return int(self._control.fired)

    @property
    def step(self) -> str:
        """Where the watched process says that it is."""
        return bytes(self._control.step).decode()

    @step.setter
    def step(self, name: str) -> None:
        self._control.step = name.encode()

    def calls(self) -> list[Call]:
        """Return the calls that were seen, in order."""
        used, start = int(self._control.log_used), ctypes.sizeof(Control)
        assert used <= LOG_BYTES, "more calls than the log has room for"
        lines = self._map[start : start + used].decode(errors="replace").splitlines()
        return [Call(int(number), *rest) for number, *rest in (line.split("\t") for line in lines)]


def compile_shim(folder: Path) -> Path:
    """Compile the shim into a folder; returns the library."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    assert compiler is not None, "the fault shim is compiled when it is used, and there is no gcc: apt install gcc"
    library = folder / "shim.so"
    flags = ["-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", "-ldl"]
    words = [compiler, str(SOURCE), "-o", str(library), *flags]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"the fault shim does not compile:\n{done.stderr}"
    return library
