"""A namespace of the Hub as a source: what it lists and when that is asked; `bringing` has what is here of each repository."""

import json
import logging
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import astuple
from datetime import datetime
from pathlib import Path

from ....state.errors import MergdError, NotPermitted
from ....state.records import Sighting
from ..interface import SCHEME, Room, Scan
from .aside import Aside
from .backoff import LONGEST, Backoff, Quiet
from .bringing import Bringing
from .client import Limited, within
from .line import Line
from .listing import Listed, Wanted, newest_first, own_names, since
from .spool import Spool

log = logging.getLogger(__name__)

POLL = 45.0  # seconds that a poll may take
SWEEP = 3600.0  # seconds between listings of everything: so deletions are seen, and whatever a clock hid


class Namespace:
    """The repositories of one user or organisation."""

    name = "hub"

    def __init__(
        self, namespace: str, wanted: Wanted, spool: Path, *, room: int = 0, bandwidth: int = 0, tokens: bool = False,
        stream: bool = False,
    ) -> None:  # fmt: skip
        """`room`: bytes that downloads may take at once, of which one is always begun; `bandwidth`: bytes a second, 0 for all.

        `tokens`: whether the vocabulary is compared too, token by token. `stream`: whether what needs more than `room`
        never lies on this disk.
        """
        self._namespace, self._wanted = namespace, wanted
        self._closing, self._quiet = threading.Event(), Quiet()
        self.line = Line(bandwidth, self._quiet)
        self._spool = Spool(spool, self.line, self._closing.is_set)
        self._bringing = Bringing(
            self._spool, room, tokens=tokens, stream=stream, stopped=self._closing.is_set, gone=self._note_gone
        )
        self._lock, self._polls, self._aside = threading.Lock(), threading.Lock(), Aside(self._closing)
        self._listed: dict[str, Listed] | None = None  # by repository; None before the first listing
        self._swept_at = float("-inf")  # monotonic seconds
        self._newest: datetime | None = None
        self._backoff = Backoff()  # of listings
        self._trouble = ""
        self._gone: dict[tuple[str, str], float] = {}  # repository and commit -> until when (monotonic seconds)
        self._ours = bool(wanted.allow)  # whether it is known that the namespace may be watched
        self._begun = False

    # -------------------------------------------------------------------------------------------------------- listing

    def begin(self, mark: str | None, wake: Callable[[], None], room: Callable[[], Room]) -> None:
        """Delete what a crash left in the spool, and go on from the mark of an earlier life.

        `wake` is called, from any thread, when something came, or could not.
        """
        self._spool.wipe()
        self._bringing.wake, self._bringing.room, self._begun = wake, room, True
        if mark is not None:
            polls, everything = json.loads(mark)
            self._backoff, self._quiet.backoff = Backoff(*polls), Backoff(*everything)

    def poll(self) -> None:
        """Ask what there is now, within a minute; what went wrong is told by the next scan.

        One at a time: an older answer must not undo a newer one.
        """
        if not self._polls.acquire(timeout=POLL):
            return
        try:
            if not self._closing.is_set():
                self._poll()
        finally:
            self._polls.release()

    def _poll(self) -> None:
        if self._backoff.rests(time.time()) or self._quiet.rests:
            self._trouble = self._trouble or self._quiet.told or "the Hub is left alone for a while: it failed before"
            return
        before = self._quiet.backoff
        try:
            self._list()
        except MergdError as error:
            seconds = error.seconds if isinstance(error, Limited) else None
            self._backoff = self._backoff.failed(time.time(), seconds)
            self._quiet.heed(error)
            self._tell(f"{error} ({error.hint})")
        else:
            self._backoff = Backoff()
            self._quiet.went_well(before)
            self._tell("")

    def _tell(self, trouble: str) -> None:
        if trouble and trouble != self._trouble:
            log.warning("the Hub: %s", trouble)
        self._trouble = trouble

    def _check_ours(self) -> None:
        """Raise NotPermitted where neither the token nor the settings say that the namespace's models may be folded."""
        if self._ours:
            return
        if self._namespace not in own_names():
            raise NotPermitted(
                f"the namespace {self._namespace} is not the token's own, and hub.allow names none of its repositories",
                f'set hub.allow, such as ["{self._namespace}/*"] for all of them; or log in as its owner',
            )
        self._ours = True

    def _list(self) -> None:
        sweeps = self._listed is None or time.monotonic() - self._swept_at > SWEEP
        mark = None if sweeps else self._newest

        def ask() -> list[Listed]:
            with within(POLL, self._closing.is_set):
                self._check_ours()
                return list(since(newest_first(self._namespace), mark))

        found = self._aside.ask(ask, POLL)
        with self._lock:
            now = time.monotonic()
            self._gone = {what: until for what, until in self._gone.items() if until > now}
            there = (one for one in found if (one.repo, one.commit) not in self._gone)
            taken = {one.repo: one for one in there if self._wanted.takes(one)}
            gone = {one.repo for one in found} - taken.keys()  # their cards say something else now
            before = {} if sweeps else {repo: one for repo, one in (self._listed or {}).items() if repo not in gone}
            self._listed = before | taken
            self._newest = max((one.modified for one in found), default=self._newest)
        if sweeps:
            self._swept_at = time.monotonic()

    def scan(self, mark: str | None) -> Scan:
        """Return what the last poll found, the oldest first, and the mark for a later life."""
        with self._lock:
            blind = frozenset([self.name]) if self._listed is None else frozenset[str]()
            listed = sorted((self._listed or {}).values(), key=lambda one: (one.modified, one.repo))
        mark = json.dumps([astuple(self._backoff), astuple(self._quiet.backoff)])
        return Scan(tuple(map(_sighting, listed)), mark, blind, self._trouble or self._quiet.told)

    # ------------------------------------------------------------------------------------------------ what is brought

    def headers(self, sighting: Sighting, urgent: int | None = None) -> Sighting:
        """Return the sighting with its headers here. Raises Unavailable, NotPermitted or Refused until they are."""
        return self._bringing.headers(sighting, urgent)

    def confirm(self, sighting: Sighting) -> None:
        """Raise Unavailable until what the headers say was read twice."""
        self._bringing.confirm(sighting)

    def choose(self, sighting: Sighting, names: Collection[str]) -> Sighting:
        """Let only these weight files count."""
        return self._bringing.choose(sighting, names)

    def content(self, sighting: Sighting, urgent: int | None = None) -> Sighting:
        """Return the sighting with all of it here. Raises as `headers` does until it is."""
        return self._bringing.content(sighting, urgent)

    def sight(self, place: str) -> Sighting | None:
        """Return the sighting of a place, with its files if all of it is here; None if the last poll did not find it."""
        repo = place.removeprefix(SCHEME)
        with self._lock:
            listed = (self._listed or {}).get(repo)
        public, licence = (listed.public, listed.licence) if listed else (None, "")
        here = self._bringing.whole(_sighting_of(repo, "", public, licence))
        return here or (_sighting(listed) if listed else None)

    def leave(self, place: str) -> None:
        """Delete what lies here of a place: it is not needed any more."""
        self._bringing.leave(place.removeprefix(SCHEME))

    def _note_gone(self, repo: str, commit: str) -> None:
        """Take from the list what is not there any more; where it stays listed, it is not asked for at each poll."""
        with self._lock:
            self._gone[repo, commit] = time.monotonic() + LONGEST
            listed = (self._listed or {}).get(repo)
            if self._listed and listed and listed.commit == commit:
                del self._listed[repo]

    # ------------------------------------------------------------------------------------------------------- its life

    @property
    def busy(self) -> bool:
        """Whether something is on its way, after which there is more to take."""
        return self._bringing.busy

    def hush(self) -> None:
        """Ask nothing any more; what is asked ends within seconds."""
        self._closing.set()

    def close(self) -> None:
        """End its threads; they look up within seconds."""
        self.hush()
        self._bringing.close()
        if self._begun:
            self._spool.wipe()


def _sighting(listed: Listed) -> Sighting:
    return _sighting_of(listed.repo, listed.commit, listed.public, listed.licence)


def _sighting_of(repo: str, commit: str, public: bool | None, licence: str) -> Sighting:
    owner = repo.partition("/")[0]
    return Sighting("hub", f"{SCHEME}{repo}", repo, (), owner=owner, revision=commit, public=public, licence=licence)
