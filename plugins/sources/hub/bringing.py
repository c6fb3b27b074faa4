"""What is brought here of each repository: first its headers, then all the rest, on two threads, the urgent ones first.

So a silent or slow Hub keeps nobody else waiting.
"""

import logging
import time
from collections.abc import Callable, Collection
from dataclasses import replace
from functools import partial
from threading import Lock

from ....state.errors import MergdError, NotPermitted, Refused, Unavailable
from ....state.records import Sighting
from ....state.wording import size
from ..directory import Directory
from ..interface import Room
from .backoff import LONGEST, Backoff, Resting
from .client import Gone, Limited
from .files import files_of
from .lanes import Bring, Brought, Lane
from .spool import NoRoom, Spool, Unwanted, with_headers
from .streaming import Vouching, looked_at_anew

log = logging.getLogger(__name__)

ROOM_FOR = 1.0  # seconds for which the room that was found is trusted: to find it may mean to look at every file


class Bringing:
    """Brings repositories here."""

    def __init__(
        self, spool: Spool, most: int, *, tokens: bool, stream: bool, stopped: Callable[[], bool],
        gone: Callable[[str, str], None],
    ) -> None:  # fmt: skip
        """`most`: bytes that downloads may take at once, of which one is always begun.

        `stream`: whether what needs more than these never lies on this disk; `gone`: called with the repository and the commit of what is not there any more.
        """
        self.wake: Callable[[], None] = lambda: None
        self.room: Callable[[], Room] = Room
        self._spool, self._quiet, self._most = spool, spool.line.quiet, most
        self._tokens, self._stream = tokens, stream
        self._stopped, self._gone = stopped, gone
        self._lock = Lock()
        self._brought: dict[str, Brought] = {}
        self._under_way = 0
        self._found_room: tuple[float, Room] = (float("-inf"), Room())
        self._looking, self._fetching = Lane("mergd-hub-headers"), Lane("mergd-hub-content")

    @property
    def busy(self) -> bool:
        """Whether something is on its way, after which there is more to take."""
        with self._lock:
            return self._under_way > 0

    def close(self) -> None:
        """End the threads, which look up within seconds."""
        for lane in (self._looking, self._fetching):
            lane.thread.shutdown(cancel_futures=True)

    # ------------------------------------------------------------------------------------------- on the scan's thread

    def headers(self, sighting: Sighting, urgent: int | None) -> Sighting:
        """Return the sighting with its headers here. Raises what `Remote.headers` does."""
        with self._lock:
            brought = self._at(sighting, urgent)
            if brought.error is not None:
                if brought.backoff.rests(time.time()):
                    raise brought.error.with_traceback(None)
                brought.error = None
            if brought.refusal is not None:
                raise brought.refusal.with_traceback(None)
            if brought.folder is None or brought.repository is None:
                self._begin(self._looking, self._bring_headers, brought)
                raise Unavailable(brought.waits_for)
            return _here(sighting, brought)

    def confirm(self, sighting: Sighting) -> None:
        """Raise Unavailable until what was brought of it so far was read twice."""
        with self._lock:
            brought = self._at(sighting, None)
            if not brought.confirmed:
                brought.waits_for = "a second reading of its headers"
                self._begin(self._looking, self._read_again, brought)
                raise Unavailable(brought.waits_for)

    def choose(self, sighting: Sighting, names: Collection[str]) -> Sighting:
        """Let only these weight files count: of the others not even the headers stay."""
        with self._lock:
            brought = self._at(sighting, None)
            if brought.repository is None or brought.folder is None:
                raise Unavailable(brought.waits_for)
            for file in brought.repository.files:
                if file.has_weights and file.name not in names:
                    (brought.folder / file.name).unlink(missing_ok=True)
            brought.repository = brought.repository.only(names)
            return _here(sighting, brought)

    def content(self, sighting: Sighting, urgent: int | None) -> Sighting:
        """Return the sighting with all of it here. Raises what `Remote.content` does."""
        found = self.headers(sighting, urgent)
        with self._lock:
            brought = self._at(sighting, urgent)
            if not brought.whole and not brought.asked:
                brought.waits_for = self._lacks(brought) or "its download"
                if brought.waits_for == "its download":
                    brought.asked = True
                    self._begin(self._fetching, self._bring_content, brought)
            if not brought.whole:
                raise Unavailable(brought.waits_for)
        return found

    def whole(self, sighting: Sighting) -> Sighting | None:
        """Return a sighting of the commit that is here whole, if one is."""
        with self._lock:
            brought = self._brought.get(sighting.name)
            if brought is None or not brought.whole or brought.folder is None:
                return None
            return _here(replace(sighting, revision=brought.commit), brought)

    def leave(self, repo: str) -> None:
        """Delete what is here of a repository, or on its way."""
        with self._lock:
            brought = self._brought.pop(repo, None)
            if brought is not None:
                self._drop(brought)

    def _at(self, sighting: Sighting, urgent: int | None) -> Brought:
        """Return what is here of a sighting's commit; what was of another one goes."""
        brought = self._brought.get(sighting.name)
        if brought is None or brought.commit != sighting.revision:
            if brought is not None:
                self._drop(brought)
            place = self._spool.folder(sighting.name, sighting.revision)
            brought = self._brought[sighting.name] = Brought(sighting.name, sighting.revision, place)
        brought.urgent = urgent if urgent is not None else brought.urgent
        return brought

    def _drop(self, brought: Brought) -> None:
        brought.dropped, brought.under_way = True, False
        self._begin(self._looking, self._delete, brought)  # which may take a while, and comes after what brings it

    def _lacks(self, brought: Brought) -> str:
        """Return what room it waits for, if so. In the spool there always is for the first, and for what a person asked for."""
        if self._is_streamed(brought):
            return ""
        asked = [one for one in self._brought.values() if one.asked and not self._is_streamed(one)]
        beside = bool(asked) and brought.urgent is None
        if beside and sum(one.nbytes for one in asked) + brought.nbytes > self._most:
            return "its turn to be downloaded"
        coming = sum(one.nbytes - one.done for one in asked if not one.whole)
        room, takes = self._room_now(), brought.nbytes - brought.done
        if takes + coming <= room.now:
            return ""
        if brought.nbytes > room.most:
            ever = f"and beside the next version there can never be more than {size(max(room.most, 0))}"
            return f"room (make room: its download takes {size(brought.nbytes)}, {ever})"
        left = f"and beside the next version {size(max(room.now - coming, 0))} are left"
        return f"room (make room: its download takes {size(takes)}, {left})"

    def _is_streamed(self, brought: Brought) -> bool:
        """Whether its weights never lie on this disk: they take no room on it, and wait for none."""
        return self._stream and brought.nbytes > self._most

    def _room_now(self) -> Room:
        at, room = self._found_room
        if time.monotonic() - at > ROOM_FOR:
            room = self.room()
            self._found_room = time.monotonic(), room
        return room

    # -------------------------------------------------------------------------------------------------- on its threads

    def _begin(self, lane: Lane, bring: Bring, brought: Brought) -> None:
        """Let it wait for its turn on a thread, unless it does already."""
        if not brought.under_way:
            brought.under_way = True
            self._under_way += 1
            lane.add(brought, bring, self._do)

    def _do(self, lane: Lane) -> None:
        """Bring what is first; note what ends that, whatever it is, and wake the scan before all is quiet."""
        with self._lock:
            brought, bring = lane.take()
        try:
            bring(brought)
        except Unwanted:
            pass
        except MergdError as error:
            self._note(brought, error)
        except Exception as error:
            if not brought.dropped:  # its files are deleted then
                log.exception("%s could not be brought here", brought.repo)
            self._note(brought, Unavailable(f"an end of this error: {type(error).__name__}: {error}"))
        with self._lock:
            if not brought.dropped:
                brought.under_way = False
                if brought.asked and not brought.whole and bring == self._bring_content:  # it gave way to another one
                    self._begin(lane, bring, brought)
        if not self._stopped():
            self.wake()
        with self._lock:
            self._under_way -= 1

    def _bring_headers(self, brought: Brought) -> None:
        self._check_wanted(brought)
        repository = brought.repository
        try:
            repository = repository or files_of(brought.repo, brought.commit, self._stopped, tokens=self._tokens)
            folder = self._spool.bring_headers(repository, brought.place)
        except Refused as refusal:
            brought.repository, brought.refusal = repository, refusal
            return
        with self._lock:
            brought.repository, brought.folder = with_headers(repository, folder), folder

    def _read_again(self, brought: Brought) -> None:
        """Fetch the headers once more; where they are others, all is read anew later."""
        self._check_wanted(brought)
        refusal = None
        try:
            again = brought.repository or files_of(brought.repo, brought.commit, self._stopped, tokens=self._tokens)
            alike = self._spool.reads_alike(again, brought.place)
        except Refused as error:
            alike, refusal = True, error
        brought.confirmed = alike and str(refusal) == str(brought.refusal)
        if not brought.confirmed:
            with self._lock:
                brought.folder = brought.refusal = brought.vouching = brought.feed = None
                brought.whole = brought.asked = False
            raise Unavailable(f"the headers of {brought.repo} to come twice with the same bytes", "they are read again")

    def _bring_content(self, brought: Brought) -> None:
        self._check_wanted(brought)
        repository, folder = brought.repository, brought.folder
        assert repository is not None
        assert folder is not None
        brought.done = 0

        def advance(nbytes: int) -> None:
            brought.done += nbytes
            other = self._fetching.goes_before(brought)
            brought.waits_for = f"its download: {size(brought.done)} of {size(repository.nbytes)}"
            brought.waits_for += f", after {other}" if other else ""
            if brought.dropped or other:
                raise Unwanted

        if self._is_streamed(brought):
            lose = partial(self._lose, brought)
            brought.vouching = brought.vouching or Vouching(self._spool.line, repository, folder, lose)
            brought.feed = brought.vouching.go_on(advance, self._stopped)
        else:
            self._spool.bring(repository, folder, advance, keep_free=self._found_room[1].keep_free)
        with self._lock:
            brought.whole = True

    def _lose(self, brought: Brought, error: MergdError) -> MergdError:
        """Note that what its feed gave is not given any more: it is not here, and is looked at anew."""
        with self._lock:
            brought.whole, brought.vouching, brought.feed = False, None, None
        self._note(brought, error)
        return looked_at_anew(error)

    def _delete(self, brought: Brought) -> None:
        self._spool.leave(brought.place)

    def _check_wanted(self, brought: Brought) -> None:
        if brought.dropped:
            raise Unwanted
        self._quiet.check()

    def _note(self, brought: Brought, error: MergdError) -> None:
        with self._lock:
            self._quiet.heed(error)
            if brought.dropped:
                return
            brought.error, brought.asked = error, False  # others may be fetched while it rests
            if isinstance(error, NotPermitted):
                brought.backoff = Backoff(until=time.time() + LONGEST)  # a person must act first
            elif isinstance(error, Resting):
                rests = self._quiet.backoff
                brought.backoff = replace(brought.backoff, until=rests.until, rest=rests.rest)
            else:
                seconds = error.seconds if isinstance(error, Limited) else None
                brought.backoff, brought.waits_for = brought.backoff.failed(time.time(), seconds), str(error)
            if isinstance(error, NoRoom):
                brought.folder, brought.done = None, 0
        if isinstance(error, Gone):
            self._gone(brought.repo, brought.commit)


def _here(sighting: Sighting, brought: Brought) -> Sighting:
    """Return a sighting with where its files lie, or what gives them, with their stamps, and with what they hold."""
    assert brought.folder is not None
    found = Directory(brought.folder.parent).sight(brought.folder)
    told = brought.repository.told if brought.repository else ""
    stamps = found.stamps if found else ()
    return replace(sighting, folder=str(brought.folder), stamps=stamps, files=told, feed=brought.feed)
