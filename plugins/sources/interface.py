"""What a source is: a place where checkpoints appear. The truth is its scan, repeated; all else is a hint to scan."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from ...state.errors import MergdError, Unavailable
from ...state.records import Sighting

SCHEME = "hf://"  # begins the place of what lies in a repository of the Hub


@dataclass(frozen=True)
class Scan:
    """What a source sees now."""

    sightings: tuple[Sighting, ...]  # sorted by name; the steps of a run by their number
    mark: str | None = None  # given back to the next scan; None where each scan sees everything
    blind: frozenset[str] = frozenset()  # names of sources that could not look: what they do not see may well be there
    trouble: str = ""  # why, if so; what lies elsewhere tells here too what keeps it from being asked


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


@dataclass(frozen=True)
class Room:
    """Bytes of this disk for what is brought here: what the next version needs is none of them."""

    now: int = 2**62  # that are left; negative where not even the next version fits
    most: int = 2**62  # that there could be if nothing else lay there
    keep_free: Callable[[], int] = lambda: 0  # that must be free at any moment while something comes; from any thread


def shows_change(before: str | None, now: str) -> bool:
    """Whether what a source says of files shows, before they are here, that their weights are others than before.

    Both are `Sighting.files` in three parts: the weights must lie alike, by names and shapes, and be others. Where they lie
    otherwise, the same weights may have been stored in another way.
    """
    told, tells = (before or "").split("."), now.split(".")
    return len(told) == len(tells) == 3 and told[1] == tells[1] and told[2] != tells[2]


Sight = Callable[
    [str], Sighting | None
]  # the sighting of what lies at a place now, None if nothing could be a checkpoint


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


class Lost(Unavailable):
    """What was folded from elsewhere is not given any more: it is gone, was rewritten, or is out of the token's reach."""

    def __init__(self, sighting: Sighting, why: MergdError) -> None:
        super().__init__(str(why), why.hint)
        self.sighting, self.why = sighting, why


class Later(Unavailable):
    """What lies elsewhere does not come now."""

    def __init__(self, found: str, until: float, *, for_room: bool = False) -> None:
        super().__init__(found, "it is asked again later")
        self.until = until  # wall-clock seconds
        self.for_room = for_room  # on this disk: nobody else is waited for


class Remote(Protocol):
    """A source whose checkpoints lie elsewhere, each whole: first their headers are brought here, then all the rest.

    Whatever takes long is done on its own threads, which wake the scan: `headers` and `content` return at once.
    """

    @property
    def name(self) -> str:
        """Return what tells this source from the others, for good."""
        ...

    @property
    def busy(self) -> bool:
        """Whether it brings something here, after which there is more to take."""
        ...

    def begin(self, mark: str | None, wake: Callable[[], None], room: Callable[[], Room]) -> None:
        """Begin a life, with the mark that the last scan of an earlier one gave: nothing is here yet.

        `wake` is called, from any thread, when something was brought here, or could not be. `room` is called where `content`
        is.
        """
        ...

    def poll(self) -> None:
        """Ask what there is now, within a minute; what went wrong is told by the next scan."""
        ...

    def scan(self, mark: str | None) -> Scan:
        """Return what the last poll found, and `mark` as it is now."""
        ...

    def sight(self, place: str) -> Sighting | None:
        """Return the sighting of a place, with its files if all of it is here; None if nobody knows of it."""
        ...

    def headers(self, sighting: Sighting, urgent: int | None = None) -> Sighting:
        """Return the sighting with the folder where small files lie, and weight files with nothing but their headers.

        urgent: its place among those that a person asked for, which come first. Raises Unavailable, saying what is waited
        for, until they are here; NotPermitted where the token does not reach; Refused where they are too much.
        """
        ...

    def confirm(self, sighting: Sighting) -> None:
        """Return if what `headers` gave was read twice, by two requests. Raises Unavailable until it was.

        Nothing tells otherwise whether they came unharmed, and a refusal is for good.
        """
        ...

    def choose(self, sighting: Sighting, names: Collection[str]) -> Sighting:
        """Let only these weight files of it count; returns the sighting with what they hold, where that is known."""
        ...

    def content(self, sighting: Sighting, urgent: int | None = None) -> Sighting:
        """Return the sighting with the folder where all of it lies. Raises as `headers` does."""
        ...

    def leave(self, place: str) -> None:
        """Delete what lies here of a place: it is not needed any more."""
        ...

    def hush(self) -> None:
        """Ask nothing any more; what is asked ends within seconds."""
        ...

    def close(self) -> None:
        """End its threads, and delete what was brought."""
        ...
