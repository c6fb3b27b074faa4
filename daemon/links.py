"""Links in a checkpoint's folder: what they lead to must be the checkpoint's own."""

import os
from collections.abc import Iterable
from pathlib import Path

from ..state.records import Reason


def link_elsewhere(place: Path, files: Iterable[str]) -> Reason | None:
    """Return why a link to elsewhere is refused; a snapshot in the Hub client's cache may lead to its own blobs."""
    home = _real(place)
    inside = [home] + ([home.parent.parent / "blobs"] if home.parent.name == "snapshots" else [])
    for path in map(Path, files):
        if path.is_symlink() and not any(_real(path).is_relative_to(folder) for folder in inside):
            found = f"{path.name}, a link to {_real(path)}"
            return Reason("link", found, "links that stay in the folder", "copy the files themselves: cp -rL")
    return None


def _real(path: Path) -> Path:
    """Return where a path leads; one that leads round in a circle, to itself."""
    return Path(os.path.realpath(path))
