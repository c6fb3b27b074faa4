"""What a unit would not see, or its user not be permitted to read: told before it is written."""

import os
import pwd
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from ..state.errors import Misconfigured
from .configuration import SYSTEM_FOLDER
from .units import CACHES, Program

HIDDEN = tuple(map(Path, ("/home", "/root", "/run/user", "/tmp", "/var/tmp")))  # noqa: S108 - from the unit, which has its own
NOBODY = 65534
HOW = """make one that it can, and install from there:
  /usr/bin/python3 -m venv /opt/mergd
  /opt/mergd/bin/pip install mergd
  sudo /opt/mergd/bin/mergd service install -n {name}"""


def check_interpreter(name: str, python: str, user: str) -> None:
    """Refuse an interpreter that a unit's user cannot run, or cannot see. Raises Misconfigured, with how to make one."""
    how = HOW.format(name=name)
    check_seen((Path(python), Path(python).resolve(), Path(sys.base_prefix), Path(__file__).resolve()), how)
    if os.geteuid() == 0 and (trouble := _try_as(user, python)):
        raise Misconfigured(f"{user or 'another user'} cannot run {python}: {trouble}", how)


def check_config(config: Path) -> None:
    """Refuse a configuration that the service would not see."""
    check_seen([config], f"put it into {SYSTEM_FOLDER}, and install without -c")


def check_program(program: Program) -> None:
    """Refuse a program, or a file among its words, that its unit does not see, or whose interpreter does not run."""
    check_interpreter(program.merge, program.python, program.user)
    words = [Path(word) for word in program.command if word.startswith("/")]
    seen = [
        word
        for word in (*words, *(word.resolve() for word in words))
        if not any(word.is_relative_to(read) for read in program.reads)
    ]
    check_seen(seen, "move it, such as to /usr/local/bin, or show it: --read PATH")
    if not program.user and (closed := _closed(program.base)):
        hint = f"chmod -R o+rX {program.base[0]}, and o+x above it; or --user-name, for a user who may"
        raise Misconfigured(f"others may not read {closed}, of the base model", hint)


def _closed(shown: Iterable[Path]) -> Path | None:
    """Return what others may not read or pass, if anything; what is above it in a home is not the home's own in a unit."""
    for path in (path for path in shown if not path.is_relative_to(CACHES)):  # which the daemon opens
        above = [each for each in path.parents if not any(each.is_relative_to(folder) for folder in HIDDEN)]
        for each, bits in ((path, 5), *((each, 1) for each in above), *((each, 5) for each in path.rglob("*"))):
            mode = each.stat().st_mode if each.exists() else bits
            if ~mode & (bits if each.is_dir() else bits & 4):
                return each
    return None


def check_seen(paths: Iterable[Path], hint: str) -> None:
    """Refuse what lies where a unit sees nothing. Raises Misconfigured, with what to do."""
    for path in sorted(set(paths)):
        hidden = next((folder for folder in HIDDEN if path.is_relative_to(folder)), None)
        if hidden is not None:
            raise Misconfigured(f"{path} is in {hidden}, which the service does not see", hint)


def _try_as(user: str, python: str) -> str:
    """Return what goes wrong when a user runs this mergd; nothing if all is well."""
    try:
        account = pwd.getpwnam(user)
        uid, gid = account.pw_uid, account.pw_gid
    except KeyError:
        uid = gid = NOBODY
    words = [python, "-c", "import mergd.daemon.cli"]
    try:
        done = subprocess.run(  # noqa: S603 - our own interpreter
            words, user=uid, group=gid, extra_groups=[], cwd="/", env={}, capture_output=True, text=True, check=False
        )
    except OSError as error:
        return str(error.strerror)
    return done.stderr.strip().rpartition("\n")[2] if done.returncode else ""
