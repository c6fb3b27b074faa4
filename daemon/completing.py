"""What a shell completes besides commands and options: names of versions, tags and folded checkpoints, and of fold rules.

It is quick, and silent: without a configuration, or a state that this user may read, there is nothing to offer.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

from ..plugins.registry import names
from .configuration import find_config, read_settings

# A shell may evaluate what it is offered, and a checkpoint's name is chosen by who dropped it.
HARMLESS = re.compile(r"\w[\w.,/@+-]*", re.ASCII)


def versions(ctx: Any, incomplete: str) -> list[str]:
    """Return what may stand for a version: the newest ones, their tags, `head`."""
    found = [name for entry in _log(ctx) for name in (f"v{entry['version']}", *entry["tags"])]
    return _offered(["head", *found] if found else [], incomplete)


def tags(ctx: Any, incomplete: str) -> list[str]:
    """Return the tags of the newest versions."""
    return _offered([tag for entry in _log(ctx) for tag in entry["tags"]], incomplete)


def checkpoints(ctx: Any, incomplete: str) -> list[str]:
    """Return the checkpoints that the newest versions folded."""
    return _offered([entry["checkpoint"]["name"] for entry in _log(ctx) if entry["checkpoint"]], incomplete)


def versions_and_checkpoints(ctx: Any, incomplete: str) -> list[str]:
    """Return both."""
    return versions(ctx, incomplete) + checkpoints(ctx, incomplete)


def rules(incomplete: str) -> list[str]:
    """Return the installed fold rules."""
    return _offered(names("rules"), incomplete)


def _offered(found: list[str], incomplete: str) -> list[str]:
    return [name for name in dict.fromkeys(found) if name.startswith(incomplete) and HARMLESS.fullmatch(name)]


def _log(ctx: Any) -> list[dict[str, Any]]:
    """Return what the state's log.jsonl says, which everybody may read; nothing, whatever is wrong."""
    try:
        given = {key: value for part in _contexts(ctx) for key, value in part.params.items() if value is not None}
        settings = read_settings(find_config(given.get("config"), given.get("name")))
        return [json.loads(line) for line in (settings.state / "log.jsonl").read_text().splitlines()]
    except Exception:  # noqa: BLE001 - a shell shows what is written here in the middle of a line
        return []


def _contexts(ctx: Any) -> Iterator[Any]:
    """Yield the context of the whole command line, and then the command's."""
    if ctx.parent is not None:
        yield from _contexts(ctx.parent)
    yield ctx
