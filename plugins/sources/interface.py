"""What a source is: a place where checkpoints appear. The truth is its scan, repeated; all else is a hint to scan."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from ...state.records import Sighting


@dataclass(frozen=True)
class Scan:
    """What a source sees now."""

    sightings: tuple[Sighting, ...]  # sorted by name; the steps of a run by their number
    mark: str | None = None  # given back to the next scan; None where each scan sees everything


@dataclass(frozen=True)
class Evidence:
    """What one closer look at a place tells of whether somebody still writes there: facts, no verdict."""

    unreadable: str = ""  # the path of what we may not read
    unfinished: str = ""  # a file that only a copy in progress leaves
    writers: tuple[str, ...] = ()  # weight files that somebody has open for writing
    unasked: tuple[str, ...] = ()  # weight files of which that could not be found out
    holes: tuple[str, ...] = ()  # weight files with ranges that nobody has written
    network: bool = False  # it lies on a file system where what others do is not seen
    marker: str = ""  # the file that says that all is there, if nothing was changed since it was made
    manifest: str = ""  # the file that lists digests
    digests: Mapping[str, str] = field(default_factory=dict)  # what it lists: weight file -> sha256


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
