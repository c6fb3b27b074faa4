"""Finds plugins by name: ours and other people's alike are entry points, in the groups `mergd.formats` and so on."""

import sys
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Literal

from ..state.errors import MergdError, Misconfigured

Group = Literal["formats", "rules", "sources", "gates", "hooks"]


def names(group: Group) -> list[str]:
    """Return the names of the installed plugins of a group: other packages' first, which know special cases."""
    ours = f"{__package__.partition('.')[0]}."
    return [point.name for point in sorted(_points(group), key=lambda p: (p.value.startswith(ours), p.name))]


def load(group: Group, name: str) -> Any:
    """Return a plugin's class. Raises Misconfigured, with the names there are, if none is installed under this one."""
    for point in _points(group):
        if point.name == name:
            try:
                return point.load()
            except Exception as error:  # noqa: BLE001 - whatever another package's code raises while it is imported
                raise Misconfigured(
                    f"the {group[:-1]} {name!r} cannot be loaded: {error}", "mend its package"
                ) from None
    raise Misconfigured(f"no {group[:-1]} is called {name!r}", f"installed are: {', '.join(names(group)) or 'none'}")


def make(group: Group, name: str) -> Any:
    """Return a plugin that has no parameters. Raises Misconfigured where there is none, or it cannot be made."""
    made = load(group, name)
    try:
        return made()
    except MergdError:
        raise
    except Exception as error:  # noqa: BLE001 - as above
        why = f"the {group[:-1]} {name!r} cannot be made: {error or type(error).__name__}"
        raise Misconfigured(why, "mend its package") from None


def package(group: Group, name: str) -> str:
    """Return the package that a plugin is installed with, and its version: "mergd 0.1.0"."""
    found = next((point.dist for point in _points(group) if point.name == name), None)
    return f"{found.name} {found.version}" if found else ""


def _points(group: Group) -> tuple[EntryPoint, ...]:
    return _installed(group, tuple(sys.path))


@cache
def _installed(group: Group, path: tuple[str, ...]) -> tuple[EntryPoint, ...]:
    """Return the entry points of a group: they are looked up once for each `path` of modules, which takes a while."""
    return tuple(entry_points(group=f"mergd.{group}"))
