"""A watched directory: each folder in it, and each lone `.safetensors` file, may be a checkpoint."""

import os
from collections.abc import Callable
from pathlib import Path

from ....state.errors import Unavailable
from ....state.records import Sighting
from ..interface import Scan
from . import places
from .watching import Watching


class Directory:
    """The directory source."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._watching = Watching(root)

    @property
    def name(self) -> str:
        """Return "directory": one directory is watched."""
        return "directory"

    def scan(self, mark: str | None = None) -> Scan:
        """Return every place in the directory that could hold a checkpoint, whatever its state."""
        self._watching.tend()
        try:
            names = os.listdir(self.root)
        except OSError as error:
            raise Unavailable(f"cannot list {self.root}: {error.strerror}", "bring the watched folder back") from None
        found = [self.sight(place) for place in places.inside(self.root, names)]
        return Scan(tuple(sorted(filter(None, found), key=_by_name)))

    def sight(self, place: Path) -> Sighting | None:
        """Return the sighting of one place, wherever it lies, or None if nothing there could be a checkpoint."""
        return places.sight(self.name, self.root, place)

    def watch(self, wake: Callable[[], None]) -> None:
        """Let events call `wake`; where they cannot, the repeated scan finds everything all the same."""
        self._watching.begin(wake)

    def close(self) -> None:
        """Stop watching."""
        self._watching.end()


def _by_name(sighting: Sighting) -> tuple[str, int]:
    if sighting.step is None:
        return sighting.name, 0
    return sighting.name.removesuffix(str(sighting.step)), sighting.step
