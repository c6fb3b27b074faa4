"""Taking a merge's service away from this machine, or one of its programs, or all that there is of it."""

import shutil
from collections.abc import Iterable
from pathlib import Path

from ..state.errors import Misconfigured
from ..state.lock import Lock
from ..state.store import Store
from .installing import Done, check_name, ours, systemctl
from .settings import Settings
from .units import CACHES, KINDS, SYSTEM, USERS, Kind, drop_in


def uninstall(name: str, own: bool, units: Path) -> Done:
    """Stop a merge's service, and remove what was written for it; what others of its kind need stays."""
    check_name(name)
    done, unit = Done(), f"mergd@{name}.service"
    if not drop_in(units, name).exists():
        raise Misconfigured(f"{unit} was not installed by mergd service", f"systemctl status {unit} says what it is")
    programs = sorted(path for kind in KINDS for path in units.glob(f"mergd-{kind}-{name}--*"))
    for path in programs:
        if path.suffix == ".socket":
            systemctl(own, "disable", "--now", path.name)
    systemctl(own, "disable", "--now", unit)
    done.removed = [path for path in (*programs, *_written_for(name, units)) if remove(path)]
    systemctl(own, "daemon-reload")
    return done


def _written_for(name: str, units: Path) -> Iterable[Path]:
    yield drop_in(units, name)
    others = [path for path in units.glob("mergd@*.service.d/mergd.conf") if path != drop_in(units, name)]
    if not others:
        yield units / "mergd@.service"
        if units == SYSTEM:
            yield USERS


def uninstall_program(kind: Kind, merge: str, name: str, units: Path = SYSTEM) -> Done:
    """Stop one program of a merge, and remove its units; the merge's service runs on."""
    check_name(merge)
    check_name(name)
    paths = [units / f"mergd-{kind}-{merge}--{name}{ending}" for ending in (".socket", "@.service")]
    if not any(map(ours, paths)):
        raise Misconfigured(f"{merge} has no {kind} {name} that mergd service made", f"ls {units}/mergd-{kind}-*")
    systemctl(False, "disable", "--now", paths[0].name)
    done = Done(removed=[path for path in paths if remove(path)])
    systemctl(False, "daemon-reload")
    done.notes.append(
        f"take its socket out of [{kind}.{name}] of the configuration, and: systemctl reload mergd@{merge}"
    )
    return done


def remove(path: Path) -> bool:
    """Remove a file that `mergd service` wrote, and its folder if that is empty then; returns whether it did."""
    if not ours(path):
        return False
    path.unlink()
    if path.parent.name.endswith(".d") and path.parent != USERS.parent and not any(path.parent.iterdir()):
        path.parent.rmdir()
    return True


def check_purge(settings: Settings) -> None:
    """Refuse to delete what is no merge's state, or where a link leads. Raises Misconfigured."""
    state = settings.state
    if state.is_symlink():
        raise Misconfigured(f"{state} is a link, and is not deleted", "without --purge, the state stays")
    database = Store(state).database
    if database.is_symlink() or not database.is_file():
        raise Misconfigured(f"{state} holds no merge, and is not deleted", "without --purge, it stays")


def purge(settings: Settings, config: Path, name: str, own: bool) -> list[Path]:
    """Delete a merge's state, its cache and its configuration; returns them. Raises Busy if a daemon has the state."""
    check_purge(settings)
    lock = Lock(Store(settings.state).lock)
    lock.take("mergd service uninstall")
    try:
        shutil.rmtree(settings.state)
    finally:
        lock.release()
    cache = CACHES / name
    there = not own and cache.is_dir()
    if there:
        shutil.rmtree(cache, ignore_errors=True)
    config.unlink()
    return [settings.state, *([cache] if there else []), config]
