"""A machine of its own: a real systemd in namespaces (boot.sh), with this mergd installed under /opt/mergd."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import repository

BOOT = Path(__file__).with_name("boot.sh")
PYTHON = "/opt/mergd/bin/python"
PATIENCE = 120.0  # seconds; others use this machine too
NEEDED = ("unshare", "nsenter", "systemctl", "systemd-sysusers", "mount")
T = TypeVar("T")


def why_not() -> str:
    """Return what keeps a systemd from being booted here; nothing if it can be."""
    if os.geteuid() != 0:
        return "needs root"
    lacking = [tool for tool in NEEDED if shutil.which(tool) is None]
    if lacking or not Path("/lib/systemd/systemd").exists():
        return f"needs {' and '.join(lacking or ['systemd'])}"
    done = subprocess.run(
        ["unshare", "--pid", "--fork", "--mount", "--cgroup", "--net", "true"], capture_output=True, check=False
    )
    return "" if done.returncode == 0 and _has_overlay() else "this machine gives no namespaces, or no overlay"


def _has_overlay() -> bool:
    return "overlay" in Path("/proc/filesystems").read_text() or Path("/sys/module/overlay").exists()


class Machine:
    """The booted machine, and what a test does on it."""

    def __init__(self, pid: int, said: Path) -> None:
        self._pid, self.said = pid, said

    @property
    def root(self) -> Path:
        """Its root, as seen from here."""
        return Path(f"/proc/{self._pid}/root")

    def run(self, *words: object, code: int | None = 0, user: str = "") -> str:
        """Run a command on it, as root or as another user; returns what it says."""
        enter = ["nsenter", "-t", str(self._pid), "-m", "-u", "-i", "-n", "-p", "-C"]
        become = ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups"] if user else []
        done = subprocess.run(
            [*enter, *become, *map(str, words)], capture_output=True, text=True, check=False, timeout=PATIENCE, cwd="/",
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "SYSTEMD_COLORS": "0", "LC_ALL": "C.UTF-8"},
        )  # fmt: skip
        assert code is None or done.returncode == code, (
            f"{words}: {done.returncode}\n{done.stdout}\n{done.stderr}\n{self.log()}"
        )
        return done.stdout + done.stderr

    def mergd(self, *words: object, code: int | None = 0, user: str = "") -> str:
        """Run a command of mergd on it."""
        return self.run(PYTHON, "-m", "mergd", *words, code=code, user=user)

    def show(self, unit: str, what: str) -> str:
        """Return a property of a unit."""
        return self.run("systemctl", "show", "-P", what, unit).strip()

    def log(self) -> str:
        """Return the end of what systemd and its services said."""
        return self.run("journalctl", "-n", "60", "--no-pager", code=None)

    def eventually(self, what: Callable[[], T], within: float = PATIENCE) -> T:
        """Wait until something is so."""
        until = time.monotonic() + within
        while not (found := what()):
            assert time.monotonic() < until, f"it never was\n{self.log()}"
            time.sleep(0.1)
        return found


@contextlib.contextmanager
def booted() -> Iterator[Machine]:
    """Boot a machine; it is gone afterwards, with all that was on it."""
    aside = Path(tempfile.mkdtemp(prefix="mergd-machine-"))
    said = aside / "console"
    with said.open("wb") as console:
        shell = subprocess.Popen([BOOT, *_binds(aside)], stdout=console, stderr=console, stdin=subprocess.DEVNULL)
    try:
        machine = Machine(_init_of(shell, said), said)
        machine.eventually(
            lambda: machine.run("systemctl", "is-system-running", code=None).strip() in ("running", "degraded")
        )
        _install(machine)
        yield machine
    finally:
        shell.send_signal(signal.SIGKILL)
        shell.wait()
        _remove_cgroups(shell.pid)
        shutil.rmtree(aside)


def _binds(aside: Path) -> list[str]:
    """Return what of this machine is seen there: this Python, its packages, and a copy of this mergd as it would be installed."""
    site = aside / "site"
    ignored = shutil.ignore_patterns(".*", "tests", "benchmarks", "docs", "__pycache__", "build", "dist")
    shutil.copytree(repository.ROOT, site / "mergd", ignore=ignored)
    about = site / "mergd-0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: mergd\nVersion: 0.1.0\n")
    (about / "entry_points.txt").write_text(entry_points())
    packages = Path(sys.prefix) / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
    return [f"{sys.base_prefix}=/opt/python", f"{packages}=/opt/packages", f"{site}=/opt/site"]


def entry_points() -> str:
    """Return mergd's plugins, as an installation lists them."""
    import tomllib

    project = tomllib.loads((repository.ROOT / "pyproject.toml").read_text())["project"]
    groups = project["entry-points"]
    return "\n".join(
        f"[{group}]\n" + "\n".join(f"{k} = {v}" for k, v in names.items()) for group, names in groups.items()
    )


def _install(machine: Machine) -> None:
    """Make the virtual environment that a service runs from; its packages are those of this one."""
    # Its shared library lies beside it, and where this machine's interpreter looks for it, a service may see nothing.
    (machine.root / "etc/ld.so.conf.d/0-python.conf").write_text("/opt/python/lib\n")
    machine.run("ldconfig")
    python = f"/opt/python/bin/python{sys.version_info[0]}.{sys.version_info[1]}"
    machine.run(python, "-m", "venv", "--without-pip", "/opt/mergd")
    folder = f"/opt/mergd/lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages"
    machine.run("sh", "-c", f"printf '/opt/site\\n/opt/packages\\n' > {folder}/these.pth")


def _init_of(shell: "subprocess.Popen[bytes]", said: Path) -> int:
    """Return the PID, as seen here, of the systemd that was booted."""
    until = time.monotonic() + PATIENCE
    while True:
        assert shell.poll() is None, said.read_text()
        assert time.monotonic() < until, said.read_text()
        children = Path(f"/proc/{shell.pid}/task/{shell.pid}/children").read_text().split()
        if children and Path(f"/proc/{children[0]}/comm").read_text().strip() == "systemd":
            time.sleep(0.5)
            return int(children[0])
        time.sleep(0.05)


def _remove_cgroups(pid: int) -> None:
    """Remove the machine's control groups, once the kernel has ended all that was in them."""
    for _ in range(100):
        tops = list(Path("/sys/fs/cgroup").glob(f"*/mergd-test-{pid}")) + list(
            Path("/sys/fs/cgroup").glob(f"mergd-test-{pid}")
        )
        if not tops:
            return
        for top in tops:
            for folder in [*sorted((path for path in top.rglob("*") if path.is_dir()), reverse=True), top]:
                with contextlib.suppress(OSError):
                    folder.rmdir()
        time.sleep(0.1)
