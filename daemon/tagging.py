"""Tagging: what a name may look like, and giving it to a version or taking it away."""

import re
from typing import Any

from ..state.errors import Usage
from ..state.history import History
from ..state.records import OURS, Tag, Version
from ..state.wording import shown
from .dropping import decide
from .naming import find_version
from .requests import Tag as Asked
from .requests import Untag
from .retention import Keep

LONGEST = 100  # characters
PART = r"[A-Za-z0-9_](?:[A-Za-z0-9_.+-]*[A-Za-z0-9_+-])?"
NAME = re.compile(rf"{PART}(?:/{PART})*")
LIKE_A_VERSION = re.compile(r"v?\d+|head", re.IGNORECASE)


def tag(request: Asked, history: History, who: str) -> dict[str, Any]:
    """Name a version, which is kept from then on. Raises Usage for a name that cannot be one, or that another has."""
    check_name(request.name)
    version = find_version(history, request.version)
    if not version.kept:
        raise Usage(f"{_why_not(version)}: a tag could not keep it", f"to have it back: mergd replay {version}")
    old = history.tags.get(request.name)
    if old is not None and old.version != version.number and not request.force:
        raise Usage(f"{request.name} is v{old.version} already", "to move it: mergd tag --force NAME VERSION")
    if old is None or old.version != version.number:
        history.tags.put(request.name, version.number, who)
    return {"tag": request.name, "version": version.number, "before": old.version if old else None}


def untag(request: Untag, history: History, keep: Keep) -> dict[str, Any]:
    """Take a name away; says what still keeps its version."""
    old = history.tags.get(request.name)
    if old is None:
        raise Usage(f"there is no tag {shown(request.name)!r}", "the tags there are: mergd tag")
    history.tags.remove(old.name)
    left = next((fate.model for fate in decide(history, keep) if fate.version.number == old.version), ())
    return {"tag": old.name, "version": old.version, "kept_for": list(left)}


def describe(tags: list[Tag]) -> list[dict[str, Any]]:
    """Return tags as scripts see them."""
    return [{"tag": tag.name, "version": tag.version, "who": tag.who, "at": tag.at} for tag in tags]


def check_name(name: str) -> None:
    """Raise Usage for what cannot be a tag: it must not be taken for a version, a path or an option."""
    if OURS.fullmatch(name):
        raise Usage(f"{name!r} is what mergd calls a version itself", "such as: good, stable/2026-01, v1.0-rc1")
    if LIKE_A_VERSION.fullmatch(name):
        raise Usage(f"{shown(name)!r} is how versions are written", "such as: good, stable/2026-01, v1.0-rc1")
    if len(name) > LONGEST or not NAME.fullmatch(name) or ".." in name or f"{name}/".find(".lock/") >= 0:
        raise Usage(
            f"{shown(name)!r} cannot be a tag",
            f"letters, digits and _ . + - in parts between slashes, at most {LONGEST}: good, stable/2026-01, v1.0-rc1",
        )


def _why_not(version: Version) -> str:
    if version.model_kept:
        return f"{version} is damaged ({version.damaged})"
    return f"the files of {version} were dropped by retention"
