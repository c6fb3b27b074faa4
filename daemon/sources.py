"""The sources of one merge together: a watched folder, a namespace of the Hub, or both. None of them keeps another waiting."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ..plugins.registry import load
from ..plugins.sources.interface import Remote, Room, Scan, Source
from ..state.errors import MergdError, Unavailable
from ..state.records import Sighting
from ..state.store import Store
from .naming import ELSEWHERE
from .settings import Settings

if TYPE_CHECKING:  # the Hub's client takes a second to import, and most merges need none
    from ..plugins.sources.hub.line import Line
    from ..plugins.sources.hub.namespace import Namespace

log = logging.getLogger(__name__)


class Sources:
    """All sources of a merge, as one."""

    def __init__(self, local: Source | None, remote: Remote | None = None, line: "Line | None" = None) -> None:
        """`line`: over which the remote one fetches, for who else fetches from there."""
        self._local, self.remote, self.line = local, remote, line
        self.mark: str | None = None  # of the remote one, for a later life
        self.trouble = ""  # why what lies elsewhere could not be asked last: all that is here goes on

    def begin(self, mark: str | None, wake: Callable[[], None], room: Callable[[], Room]) -> None:
        """Begin a life, with the mark of an earlier one; `wake` is called when something came from elsewhere.

        room: called, by whoever takes what a scan saw, before anything large is brought here.
        """
        if self.remote is not None:
            self.mark = mark
            self.remote.begin(mark, wake, room)

    def scan(self) -> Scan:
        """Return what all of them see now, those that cannot look by name, and why the watched folder cannot be looked at."""
        here = self._looked(self._local.name, self._local.scan) if self._local is not None else Scan(())
        there = self._looked(self.remote.name, self.remote.scan) if self.remote is not None else Scan(())
        self.trouble = there.trouble
        return Scan(here.sightings + there.sightings, None, here.blind | there.blind, here.trouble)

    def _looked(self, name: str, scan: Callable[[str | None], Scan]) -> Scan:
        try:
            found = scan(self.mark)
            self.mark = found.mark or self.mark
            return found
        except Unavailable as error:
            log.warning("%s", error)
            return Scan((), None, frozenset({name}), str(error))
        except MergdError:
            raise
        except Exception as error:  # another package's source: a later scan may do better
            trouble = f"the source {name} failed: {type(error).__name__}: {error}"
            log.error("%s", trouble, exc_info=error)
            return Scan((), None, frozenset({name}), trouble)

    def sight(self, place: str) -> Sighting | None:
        """Return the sighting of one place, wherever it lies, or None if nothing here could be a checkpoint."""
        if ELSEWHERE in place:
            return self.remote.sight(place) if self.remote else None
        return self._local.sight(Path(place)) if self._local else None

    def watch(self, wake: Callable[[], None], *, events: bool) -> None:
        """Let the events of the watched folder call `wake`, or no more."""
        if self._local is not None:
            self._local.watch(wake) if events else self._local.close()

    def poll(self) -> None:
        """Ask elsewhere what there is now; from any thread, for up to a minute."""
        if self.remote is not None:
            self.remote.poll()

    @property
    def busy(self) -> bool:
        """Whether something is being brought here."""
        return self.remote is not None and self.remote.busy

    def hush(self) -> None:
        """Ask nothing elsewhere any more, so that a stop waits for no answer."""
        if self.remote is not None:
            self.remote.hush()

    def close(self) -> None:
        """Stop watching."""
        for source in (self._local, self.remote):
            if source is not None:
                source.close()


def make_sources(settings: Settings) -> Sources:
    """Return the sources that the settings name."""
    if not settings.hub.namespace:
        return Sources(_local(settings))
    remote = _remote(settings)
    return Sources(_local(settings), remote, remote.line)


def here_alone(settings: Settings) -> Sources:
    """Return the sources without those elsewhere, for who only looks: nobody is asked anything."""
    return Sources(_local(settings))


def _local(settings: Settings) -> Source | None:
    return load("sources", settings.source)(settings.watch) if settings.watch else None


def _remote(settings: Settings) -> "Namespace":
    """Return the watched namespace; what it needs is imported only where there is one."""
    from ..plugins.sources.hub.listing import Wanted
    from ..plugins.sources.hub.namespace import Namespace

    hub, tokens = settings.hub, settings.vocabulary != "refuse"
    wanted = Wanted(hub.base or base_repository(settings), hub.allow, hub.deny, hub.publish_to)
    spool = Store(settings.state).spool
    return Namespace(
        hub.namespace,
        wanted,
        spool,
        room=int(hub.spool),
        bandwidth=int(hub.bandwidth),
        tokens=tokens,
        stream=hub.stream,
    )


def base_repository(settings: Settings) -> str:
    """Return the repository that the base model is, without its revision; empty if it is a folder."""
    is_path = Path(settings.base_model).expanduser().exists()
    return "" if is_path else settings.base_model.partition("@")[0]
