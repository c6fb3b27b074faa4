"""The configuration file: where it is looked for, whose it must be, and what it says."""

import grp
import os
import pwd
import re
import stat
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..state.errors import Misconfigured, NotPermitted, Usage
from .settings import Settings, validate
from .settings_tables import absolute

SYSTEM_FOLDER = Path("/etc/mergd")
LOCAL = Path("mergd.toml")


def read_settings(path: Path) -> Settings:
    """Return the settings of a file. Raises Misconfigured naming the first wrong key, and what is right."""
    try:
        check_owner(path)
        with path.open("rb") as file:
            values = tomllib.load(file)
    except PermissionError:
        raise NotPermitted(f"this user may not read {path}", "run as its owner, or with sudo") from None
    except OSError as error:
        raise Misconfigured(
            f"cannot read {path}: {error.strerror}", "bring it back, or make one: mergd init --help"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise Misconfigured(f"{path} is no TOML: {error}", "mend that line") from None
    for key in ("watch", "state"):  # a relative path means the same from wherever a command is run
        if isinstance(values.get(key), str) and values[key]:
            values[key] = str(Path(absolute(path)).parent / Path(values[key]).expanduser())
    return validate(values, str(path))


def values_of(pairs: Sequence[str]) -> dict[str, Any]:
    """Return settings from texts KEY=VALUE, VALUE as TOML or as it stands; a key that is no setting is a parameter."""
    values: dict[str, Any] = {"parameters": {}}
    for pair in pairs:
        key, mark, text = pair.partition("=")
        if not mark:
            raise Usage(f"{pair!r} is not KEY=VALUE", "such as: --set alpha=0.4")
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            value = text
        *tables, name = key.split(".")
        if (tables or [name])[0] not in Settings.model_fields:
            tables, name = ["parameters"], key
        place = values
        for table in tables:
            place = place.setdefault(table, {})
        place[name] = value
    return values


# ------------------------------------------------------------------------------------------------------------ finding


def find_config(config: Path | None = None, name: str | None = None) -> Path:
    """Return the configuration file: `config`, /etc/mergd/NAME.toml, $MERGD_CONFIG, ./mergd.toml (never for root, who
    might stand in somebody else's folder), or /etc/mergd/mergd.toml. Raises Misconfigured if it is not there.
    """
    path = _named(config, name) or _default_config()
    if not path.is_file():
        here = LOCAL.is_file() and path == SYSTEM_FOLDER / LOCAL
        hint = (
            f"root takes {LOCAL} only when told: -c {LOCAL}" if here else "make one: mergd init --help; or give -c PATH"
        )
        raise Misconfigured(f"there is no configuration at {path}", hint)
    return path


def _named(config: Path | None, name: str | None) -> Path | None:
    if config is not None and name is not None:
        raise Misconfigured("both -c and -n were given", "give one of them")
    if name is not None and not re.fullmatch(r"[\w.-]+", name):
        raise Misconfigured(f"{name!r} is no name of a configuration", f"-n NAME means {SYSTEM_FOLDER}/NAME.toml")
    return config if name is None else SYSTEM_FOLDER / f"{name}.toml"


def _default_config() -> Path:
    if named := os.environ.get("MERGD_CONFIG"):
        return Path(named)
    return LOCAL if os.geteuid() != 0 and LOCAL.is_file() else SYSTEM_FOLDER / LOCAL


def new_config(config: Path | None, name: str | None) -> Path:
    """Return where init writes the configuration: as it is looked for, or ./mergd.toml."""
    return _named(config, name) or Path(os.environ.get("MERGD_CONFIG") or LOCAL)


def check_owner(path: Path) -> None:
    """Refuse a configuration that somebody else could change: it, and the folders above it, must belong to the caller
    or to root, and be writable by nobody else (a sticky folder of root's, such as /tmp, lets nobody replace our files).
    """
    real = Path(absolute(path)).resolve()
    for place in (real, *real.parents):
        status = place.stat()
        sticky = stat.S_ISDIR(status.st_mode) and status.st_mode & stat.S_ISVTX and status.st_uid == 0
        if status.st_uid not in (0, os.geteuid()):
            raise Misconfigured(f"{place} belongs to user {status.st_uid}", "it must belong to you or to root")
        if status.st_mode & 0o022 and not sticky and not _private_group(status):
            raise Misconfigured(f"{place} is writable by others", f"run: chmod go-w {place}")


def _private_group(status: os.stat_result) -> bool:
    """Whether only its group may write, and that is the owner's own, with nobody else in it (umask 002)."""
    try:
        owner, group = pwd.getpwuid(status.st_uid), grp.getgrgid(status.st_gid)
    except KeyError:
        return False
    alone = owner.pw_gid == group.gr_gid and owner.pw_name == group.gr_name and set(group.gr_mem) <= {owner.pw_name}
    return alone and not status.st_mode & 0o002
