"""One repository on its way here, and the threads that it waits for: the urgent ones go first."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from ....state.errors import MergdError, Refused
from .backoff import Backoff
from .files import Repository
from .streaming import Stream, Vouching


@dataclass
class Brought:
    """What is here of one repository at one commit, or on its way."""

    repo: str
    commit: str
    place: Path  # where its files go, and no other's ever
    waits_for: str = "its headers from the Hub"
    urgent: int | None = None  # its place among those that a person asked for
    repository: Repository | None = None  # its files, once the Hub has told
    folder: Path | None = None  # with the headers
    refusal: Refused | None = None  # why not even the headers are brought
    confirmed: bool = False  # the headers were read twice
    asked: bool = False  # its content
    done: int = 0  # bytes of it
    whole: bool = False  # with all the rest, or with what gives that
    vouching: Vouching | None = None  # what went by so far of what is never to lie here
    feed: Stream | None = None  # what gives it then
    under_way: bool = False  # on a thread, or waiting for one
    dropped: bool = False  # nobody wants it any more
    error: MergdError | None = None  # what went wrong last
    backoff: Backoff = field(default_factory=Backoff)

    @property
    def nbytes(self) -> int:
        """Bytes of its weights."""
        return self.repository.nbytes if self.repository else 0

    @property
    def rank(self) -> tuple[bool, bool, int]:
        """Return what orders those that wait: what is to be deleted, then the urgent ones."""
        return not self.dropped, self.urgent is None, self.urgent or 0


Bring = Callable[[Brought], None]


class Lane:
    """One thread, and what waits for it."""

    def __init__(self, name: str) -> None:
        self.thread = ThreadPoolExecutor(1, name)
        self._waiting: list[tuple[Brought, Bring]] = []

    def add(self, brought: Brought, bring: Bring, do: Callable[["Lane"], None]) -> None:
        """Let it wait for its turn; `do` takes whatever is first then."""
        self._waiting.append((brought, bring))
        self.thread.submit(do, self)

    def take(self) -> tuple[Brought, Bring]:
        """Return what is first, which waits no more."""
        return self._waiting.pop(min(range(len(self._waiting)), key=lambda k: self._waiting[k][0].rank))

    def goes_before(self, brought: Brought) -> str:
        """Return what waits and is more urgent, if anything."""
        return next((other.repo for other, _ in tuple(self._waiting) if other.rank < brought.rank), "")
