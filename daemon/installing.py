"""Installing a merge's service on this machine, or a program's: what stands in its way, the files, and what systemd is told."""

import os
import pwd
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from grp import getgrgid
from pathlib import Path

from ..state.errors import MergdError, Misconfigured, NotPermitted, Unavailable
from ..state.history import History
from ..state.store import Store
from ..state.users import name_of
from .configuration import SYSTEM_FOLDER, read_settings
from .settings import Settings
from .units import (
    MARK,
    READ_TOKEN,
    SYSTEM,
    USER,
    USERS,
    Place,
    Program,
    credentials_of,
    drop_in,
    memory_max,
    network_of,
)

BOOTED = Path("/run/systemd/system")


@dataclass
class Done:
    """What was done, as a person is told it."""

    written: list[Path] = field(default_factory=list)
    removed: list[Path] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def check_name(name: str) -> None:
    """Refuse a name that could not be an instance's of a unit, or would name a folder above."""
    if not re.fullmatch(r"(?!\.+$)[A-Za-z0-9_.]+(-[A-Za-z0-9_.]+)*", name):
        raise Misconfigured(
            f"{name!r} is no name of a service",
            "letters, digits, dots, underscores, and single hyphens between them make one",
        )


def check_may(own: bool) -> None:
    """Refuse where there is no systemd, or where it would not listen to us."""
    if not BOOTED.is_dir() or shutil.which("systemctl") is None:
        raise Misconfigured(
            "this machine was not booted with systemd", "run it as you run other daemons: mergd run -n NAME"
        )
    if not own and os.geteuid() != 0:
        raise NotPermitted("only root installs a service of the machine", "sudo; or --user for one of your own")


def place_of(name: str, config: Path, user: str, own: bool) -> Place:
    """Look up what a merge's service is made from. Raises Misconfigured, NotPermitted."""
    check_name(name)
    settings = read_settings(config)
    state, account = settings.state, _account(user, own)
    if not Store(state).database.exists():
        raise Misconfigured(f"{state} holds no merge", Store(state).way_in())
    if not own:
        _check_owner(state, account)
    return Place(
        name=name,
        config=config.resolve(),
        python=sys.executable,
        settings=settings,
        buffers=buffers_of(settings),
        systemd=systemd_version(),
        user=user,
        groups=tuple(getgrgid(g).gr_name for g in [account.pw_gid]) if account and user != USER else (),
        credentials={} if own else _credentials(name, settings),
        gpu=_has_gpu(settings.device),
        units=Path("~/.config/systemd/user").expanduser() if own else SYSTEM,
        own=own,
    )


def _account(user: str, own: bool) -> pwd.struct_passwd | None:
    try:
        return pwd.getpwnam(user)
    except KeyError:
        if user == USER or own:
            return None  # it is made as the service is installed
        raise Misconfigured(f"there is no user {user}", "name one that is there, or leave --user-name out") from None


def _check_owner(state: Path, account: pwd.struct_passwd | None) -> None:
    owner = state.stat().st_uid
    if owner not in (0, account.pw_uid if account else 0):
        name = name_of(owner)
        hint = f"to run as that user: --user-name {name}; to hand it over: chown -R {USER}: {state}"
        raise Misconfigured(f"{state} belongs to {name}", hint)


def _credentials(name: str, settings: Settings) -> dict[str, Path]:
    """Return the credentials, as files of root's. Raises Misconfigured where the configuration names one that is not there."""
    named, found = credentials_of(settings), {}
    if network_of(settings) == "all":
        named = (READ_TOKEN, *named)
    for credential in named:
        places = [SYSTEM_FOLDER / f"{name}.{credential}", SYSTEM_FOLDER / credential]
        there = next((path for path in places if path.exists()), None)
        if there is not None:
            found[credential] = there
        elif credential != READ_TOKEN:
            hint = f"put it into {places[0]}, for root alone (0600), then install again"
            raise Misconfigured(f"the configuration names the credential {credential}, which is nowhere", hint)
    return found


def _has_gpu(device: str) -> bool:
    """Whether a GPU is what the setting comes to here."""
    if device == "cpu":
        return False
    from .device import resolve

    return resolve(device) != "cpu"


def buffers_of(settings: Settings) -> int:
    """Return the bytes of working buffers: as set, or as the largest matrix of the base model needs."""
    if settings.memory:
        return int(settings.memory)
    from .blocks import machine_of  # torch takes seconds to import, and the command line is for more than this
    from .method import method_of
    from .opening import pinned_base
    from .progress import Progress

    with History(Store(settings.state).database) as history:
        pins = history.pins()
    base, method = pinned_base(settings, pins, Progress()), method_of(settings.method)
    return machine_of(settings, base, method).memory


def systemd_version() -> int:
    """Return the version of the machine's systemd; 0 if there is none."""
    try:
        said = subprocess.run(["systemctl", "--version"], capture_output=True, text=True, check=False).stdout  # noqa: S607
    except OSError:
        return 0
    match = re.match(r"systemd (\d+)", said)
    return int(match[1]) if match else 0


# ------------------------------------------------------------------------------------------------ files, and systemctl


def write(files: Mapping[Path, str]) -> list[Path]:
    """Write files that are not there as they are to be; returns which. Raises Misconfigured for one that others wrote."""
    stale = [path for path, text in files.items() if not path.exists() or path.read_text() != text]
    for path in stale:
        if path.exists() and not ours(path):
            raise Misconfigured(f"{path} was not written by mergd service", "move it away, or keep your own")
    for path in stale:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(f".{path.name}.new")
        aside.write_text(files[path])
        aside.chmod(0o644)
        aside.rename(path)
    return stale


def ours(path: Path) -> bool:
    """Whether `mergd service` wrote a file."""
    return path.is_file() and path.read_text(errors="replace").startswith(MARK)


def hand_over(state: Path, user: str) -> None:
    """Give the state to its user; what belongs to neither root nor that user stays as it is."""
    account = pwd.getpwnam(user)
    if state.stat().st_uid == account.pw_uid:
        return
    group = pwd.getpwnam(user).pw_gid
    for folder, folders, names, at in os.fwalk(state, follow_symlinks=False):
        for name in (*folders, *names):
            if os.stat(name, dir_fd=at, follow_symlinks=False).st_uid == 0:
                os.chown(name, account.pw_uid, group, dir_fd=at, follow_symlinks=False)
        del folder
    os.chown(state, account.pw_uid, group)  # last: while it is root's, nobody else changes what lies in it


def systemctl(own: bool, *words: str) -> str:
    """Tell systemd something; returns what it says. Raises Unavailable with its words."""
    command = ["systemctl", *(["--user"] if own else []), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        raise Unavailable(
            f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}", "journalctl -xe says more"
        )
    return done.stdout.strip()


def install(place: Place, files: Mapping[Path, str]) -> Done:
    """Write the files, make the user, hand over the state, and have it run."""
    done = Done(written=write(files))
    unit = f"mergd@{place.name}.service"
    if not place.own:
        if USERS in files:
            subprocess.run(["systemd-sysusers", USERS], check=True)  # noqa: S603, S607
        hand_over(place.settings.state, place.user)
    systemctl(place.own, "daemon-reload")
    systemctl(place.own, "enable", unit)
    running = _is(place.own, "is-active", unit)
    if done.written or not running:
        try:
            systemctl(place.own, "restart", unit)
        except MergdError as error:
            log = f"journalctl {'--user ' if place.own else ''}-u {unit}"
            raise Unavailable(f"{unit} is installed and does not start: {error}", f"{log} says why") from None
    done.notes.append(f"{unit} runs; what it is about: systemctl {'--user ' if place.own else ''}status {unit}")
    done.notes += notes_on(place)
    return done


def notes_on(place: Place) -> Iterator[str]:
    """Say what else is to be known of a service that is installed."""
    children = [name for name, gate in place.settings.gate.items() if gate.command]
    if children:
        most = memory_max(place.buffers) >> 20
        yield f"gate {', '.join(children)}: the daemon's child, in its memory of {most} MiB; mergd service gate gives its own"
    for path in sorted(place.units.glob(f"mergd-*-{place.name}--*.socket")):
        if ours(path) and f"\nSocketUser={place.user}\n" not in path.read_text():
            yield f"{path.name} is for another user than {place.user}: make it again, mergd service gate or hook"


def asker_of(name: str, units: Path = SYSTEM) -> str:
    """Return the user that a merge's daemon was installed to run as. Raises Misconfigured where it was not."""
    path = drop_in(units, name)
    if not ours(path):
        raise Misconfigured(f"the service of {name} is not installed", f"first: mergd service install -n {name}")
    users = re.findall(r"^User=(.+)$", path.read_text(), re.MULTILINE)
    return users[-1] if users else USER


def install_program(program: Program, files: Mapping[Path, str]) -> Done:
    """Write the units of a gate's or a hook's program, and have systemd listen for who asks."""
    done, socket = Done(written=write(files)), f"{program.unit}.socket"
    systemctl(False, "daemon-reload")
    systemctl(False, "enable", socket)
    if done.written or not _is(False, "is-active", socket):
        systemctl(False, "restart", socket)
    done.notes.append(f'[{program.kind}.{program.name}] of the configuration: socket = "{program.socket}"')
    return done


def _is(own: bool, what: str, unit: str) -> bool:
    command = ["systemctl", *(["--user"] if own else []), what, "--quiet", unit]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0  # noqa: S603
