"""What a source is: a place where checkpoints appear. The truth is its scan, repeated; all else is a hint to scan."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ...state.records import Sighting


@dataclass(frozen=True)
class Scan:
    """What a source sees now."""

    sightings: tuple[Sighting, ...]  # sorted by name
    mark: str | None = None  # given back to the next scan; None where each scan sees everything


class Source(Protocol):
    """Where checkpoints come from. It is made with one argument: the path that the setting `watch` names."""

    @property
    def name(self) -> str:
        """Return what tells this source from the others, for good."""
        ...

    def scan(self, mark: str | None) -> Scan:
        """Return all that is there, or all since `mark`. Raises Unavailable while it cannot look."""
        ...

    def sight(self, place: Path) -> Sighting | None:
        """Return the sighting of one place, or None if nothing there could be a checkpoint."""
        ...

    def watch(self, wake: Callable[[], None]) -> None:
        """Call `wake`, from any thread, when a scan may find something new. May miss and may repeat."""
        ...

    def close(self) -> None:
        """Stop watching."""
        ...
