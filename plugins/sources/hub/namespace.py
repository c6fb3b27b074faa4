"""A namespace of the Hub as a source: who is asked when, and what is here of each repository.

Two threads of its own bring headers and weights, so that a silent or slow Hub keeps nobody else waiting.
"""

import json
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path

from ....state.errors import MergdError, NotPermitted, Unavailable
from ....state.records import Sighting
from ....state.wording import size
from ..directory import Directory
from ..interface import Scan
from .backoff import LONGEST, Backoff
from .client import Gone, Limited, within
from .listing import Listed, Wanted, newest_first, own_names, since
from .spool import Repository, Spool, Unwanted, files_of

log = logging.getLogger(__name__)

SCHEME = "hf://"
POLL = 45.0  # seconds that a poll may take
SWEEP = 3600.0  # seconds between listings of everything: so deletions are seen, and whatever a clock hid


@dataclass
class Brought:
    """What is here of one repository at one commit, or on its way."""

    repo: str
    commit: str
    waits_for: str = "its headers from the Hub"
    repository: Repository | None = None  # its files, once the Hub has told
    folder: Path | None = None  # with the headers
    whole: bool = False  # with all the rest
    asked: bool = False  # its content
    dropped: bool = False  # nobody wants it any more
    error: MergdError | None = None  # what went wrong last
    backoff: Backoff = field(default_factory=Backoff)


class Namespace:
    """The repositories of one user or organisation."""

    name = "hub"

    def __init__(
        self, namespace: str, wanted: Wanted, spool: Path, *, room: int = 0, bandwidth: int = 0, tokens: bool = False
    ) -> None:
        """`room`: bytes that downloads may take at once, of which one is always begun; `bandwidth`: bytes a second, 0 for all.

        `tokens`: whether the vocabulary is compared too, token by token.
        """
        self._namespace, self._wanted, self._room, self._tokens = namespace, wanted, room, tokens
        self._closing = threading.Event()
        self._spool = Spool(spool, bandwidth, self._closing)
        self._lock = threading.Lock()
        self._listed: dict[str, Listed] | None = None  # by repository; None before the first listing
        self._swept_at = float("-inf")  # monotonic seconds
        self._newest: datetime | None = None
        self._backoff = Backoff()
        self._trouble = ""
        self._ours = bool(wanted.allow)  # whether it is known that the namespace may be watched
        self._brought: dict[str, Brought] = {}
        self._under_way, self._begun = 0, False
        self._wake: Callable[[], None] = lambda: None
        self._looking = ThreadPoolExecutor(1, "mergd-hub-headers")
        self._fetching = ThreadPoolExecutor(1, "mergd-hub-content")

    # -------------------------------------------------------------------------------------------------------- listing

    def begin(self, mark: str | None, wake: Callable[[], None]) -> None:
        """Delete what a crash left in the spool, and go on from the mark of an earlier life.

        `wake` is called, from any thread, when something came, or could not.
        """
        self._spool.wipe()
        self._wake, self._begun = wake, True
        if mark is not None:
            self._backoff = Backoff(**json.loads(mark))

    def poll(self) -> None:
        """Ask what there is now, within a minute; what went wrong is told by the next scan."""
        if self._closing.is_set():
            return
        if self._backoff.rests(time.time()):
            self._trouble = self._trouble or "the Hub is left alone for a while, as it failed before"
            return
        try:
            with within(POLL, self._closing.is_set):
                self._check_ours()
                self._list()
        except MergdError as error:
            seconds = error.seconds if isinstance(error, Limited) else None
            self._backoff = self._backoff.failed(time.time(), seconds)
            self._tell(f"{error} ({error.hint})")
        else:
            self._backoff = Backoff()
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
        found = list(since(newest_first(self._namespace), None if sweeps else self._newest))
        taken = {one.repo: one for one in found if self._wanted.takes(one)}
        with self._lock:
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
        mark = json.dumps({"failures": self._backoff.failures, "until": self._backoff.until})
        return Scan(tuple(map(_sighting, listed)), mark, blind, self._trouble)

    # ------------------------------------------------------------------------------------------------ what is brought

    def headers(self, sighting: Sighting) -> Sighting:
        """Return the sighting with its headers here. Raises Unavailable or NotPermitted until they are."""
        with self._lock:
            brought = self._brought.get(sighting.name)
            if brought is None or brought.commit != sighting.revision:
                self._drop(brought)
                brought = self._brought[sighting.name] = Brought(sighting.name, sighting.revision)
                self._begin(self._looking, self._bring_headers, brought)
            elif brought.error is not None:
                self._try_again(brought)
            if brought.folder is None or brought.repository is None:
                raise Unavailable(brought.waits_for)
            return replace(_here(sighting, brought.folder), files=brought.repository.holds)

    def content(self, sighting: Sighting) -> Sighting:
        """Return the sighting with all of it here. Raises Unavailable or NotPermitted until it is."""
        found = self.headers(sighting)
        with self._lock:
            brought = self._brought[sighting.name]
            if not brought.whole and not brought.asked and self._fits(brought):
                brought.asked, brought.waits_for = True, "its download"
                self._begin(self._fetching, self._bring_content, brought)
            if not brought.whole:
                raise Unavailable(brought.waits_for)
        return found

    def sight(self, place: str) -> Sighting | None:
        """Return the sighting of a place, with its files if all of it is here; None if the last poll did not find it."""
        repo = place.removeprefix(SCHEME)
        with self._lock:
            brought, listed = self._brought.get(repo), (self._listed or {}).get(repo)
            if brought is not None and brought.whole and brought.folder is not None:
                public = listed.public if listed else None
                return _here(_sighting_of(repo, brought.commit, public), brought.folder)
            return _sighting(listed) if listed else None

    def leave(self, place: str) -> None:
        """Delete what lies here of a place: it is not needed any more."""
        with self._lock:
            brought = self._brought.pop(place.removeprefix(SCHEME), None)
            self._drop(brought)
        if brought is not None:  # there may be room for another one now
            self._wake()

    def _drop(self, brought: Brought | None) -> None:
        if brought is not None:
            brought.dropped = True
            folder = self._spool.folder(brought.repo, brought.commit)
            self._looking.submit(self._spool.leave, folder)  # which may take a while, and comes after what brings it

    def _fits(self, brought: Brought) -> bool:
        """Whether there is room in the spool for one more; for the first there always is."""
        there = [one.repository.nbytes for one in self._brought.values() if one.asked and one.repository]
        assert brought.repository is not None
        if not there or sum(there) + brought.repository.nbytes <= self._room:
            return True
        brought.waits_for = "its turn to be downloaded"
        return False

    def _try_again(self, brought: Brought) -> None:
        """Bring it again once it has rested; raise until then what kept it from coming."""
        assert brought.error is not None
        if brought.backoff.rests(time.time()):
            raise brought.error
        brought.error, brought.asked = None, False
        if brought.folder is None:
            self._begin(self._looking, self._bring_headers, brought)

    # -------------------------------------------------------------------------------------------------- on its threads

    def _begin(self, threads: ThreadPoolExecutor, bring: Callable[[Brought], None], brought: Brought) -> None:
        self._under_way += 1
        threads.submit(self._do, bring, brought)

    def _do(self, bring: Callable[[Brought], None], brought: Brought) -> None:
        """Bring something here; note what ends that, whatever it is, and wake the scan before all is quiet."""
        try:
            if not brought.dropped:
                bring(brought)
        except Unwanted:
            pass
        except MergdError as error:
            self._note(brought, error)
        except Exception as error:
            log.exception("%s could not be brought here", brought.repo)
            self._note(brought, Unavailable(f"an end of this error: {type(error).__name__}: {error}"))
        if not self._closing.is_set():
            self._wake()
        with self._lock:
            self._under_way -= 1

    def _bring_headers(self, brought: Brought) -> None:
        repository = files_of(brought.repo, brought.commit, self._closing.is_set, tokens=self._tokens)
        folder = self._spool.bring_headers(repository)
        with self._lock:
            brought.repository, brought.folder = repository, folder

    def _bring_content(self, brought: Brought) -> None:
        repository, folder, done = brought.repository, brought.folder, 0
        assert repository is not None
        assert folder is not None

        def advance(nbytes: int) -> None:
            nonlocal done
            done += nbytes
            if brought.dropped:
                raise Unwanted
            brought.waits_for = f"its download: {size(done)} of {size(repository.nbytes)}"

        self._spool.bring(repository, folder, advance)
        with self._lock:
            brought.whole = True

    def _note(self, brought: Brought, error: MergdError) -> None:
        with self._lock:
            if brought.dropped:
                return
            brought.error, brought.asked = error, False  # others may be fetched while it rests
            if isinstance(error, NotPermitted):
                brought.backoff = Backoff(until=time.time() + LONGEST)  # a person must act first
                return
            seconds = error.seconds if isinstance(error, Limited) else None
            brought.backoff, brought.waits_for = brought.backoff.failed(time.time(), seconds), str(error)
            listed = (self._listed or {}).get(brought.repo)
            if isinstance(error, Gone) and self._listed and listed and listed.commit == brought.commit:
                del self._listed[brought.repo]

    # ------------------------------------------------------------------------------------------------------- its life

    @property
    def busy(self) -> bool:
        """Whether something is on its way, after which there is more to take."""
        with self._lock:
            return self._under_way > 0

    def hush(self) -> None:
        """Ask nothing any more; what is asked ends within seconds."""
        self._closing.set()

    def close(self) -> None:
        """End its threads; they look up within seconds."""
        self.hush()
        for threads in (self._looking, self._fetching):
            threads.shutdown(cancel_futures=True)
        if self._begun:
            self._spool.wipe()


def _sighting(listed: Listed) -> Sighting:
    return _sighting_of(listed.repo, listed.commit, listed.public)


def _sighting_of(repo: str, commit: str, public: bool | None) -> Sighting:
    return Sighting("hub", f"{SCHEME}{repo}", repo, (), owner=repo.partition("/")[0], revision=commit, public=public)


def _here(sighting: Sighting, folder: Path) -> Sighting:
    """Return a sighting with where its files lie, and with their stamps."""
    found = Directory(folder.parent).sight(folder)
    return replace(sighting, folder=str(folder), stamps=found.stamps if found else ())
