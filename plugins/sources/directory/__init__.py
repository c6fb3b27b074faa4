"""A watched directory: each folder in it, and each lone `.safetensors` file, may be a checkpoint."""

import logging
import os
from collections.abc import Callable
from pathlib import Path

from ....state.errors import Unavailable
from ....state.records import Sighting
from ..interface import Scan
from . import places
from .watching import Watching

log = logging.getLogger(__name__)


class Directory:
    """The directory source."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._watching = Watching(root)
        self._failed: dict[Path, str] = {}  # places that no rule here foresaw, and with what error

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
        found = [self._sight_or_name(place) for place in places.inside(self.root, names)]
        return Scan(tuple(sorted(filter(None, found), key=_by_name)))

    def _sight_or_name(self, place: Path) -> Sighting | None:
        """Return the sighting of one place; with an error that nobody foresaw, without files: the others are sighted."""
        try:
            sighting = self.sight(place)
            self._failed.pop(place, None)
        except Exception as error:  # one place must not hide the others
            if self._failed.get(place) != repr(error):
                log.error("%s could not be sighted", place, exc_info=error)
            self._failed[place] = repr(error)
            return Sighting(self.name, str(place), place.name, ())
        return sighting

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
