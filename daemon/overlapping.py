"""Overlapping: what a pass over the weights needs is read ahead, and several weights are worked on at once.

One thread reads, some work, and whoever asked takes what was made, in the order of the jobs: no byte depends on which of them
was done first. What is under way at once is bounded by the setting `memory`.
"""

import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from queue import SimpleQueue
from typing import TypeVar

from ..state.records import Weight
from .base import Rows
from .machine import settle_threads, with_threads

T = TypeVar("T")
BUNDLE = 4 * 2**20  # bytes of small jobs that are handed over together
BESIDE = 2  # jobs under way besides those that are worked on: one is read, one is written


@dataclass(frozen=True)
class Job:
    """One block of one weight."""

    weight: Weight
    rows: Rows
    nbytes: int  # of all that is alive of it at once
    first: bool = True  # whether it begins its weight
    last: bool = True  # whether it ends it
    alone: bool = False  # whether nothing else is under way beside it: its products take all threads


Bundle = tuple[Job, ...]
Load = Callable[[Job], Callable[[], T]]  # reads what a job needs; what it returns does the work


@contextmanager
def overlapped(
    jobs: Iterable[Job], load: Load[T], memory: int, threads: int
) -> Iterator[Generator[tuple[Job, T], None, None]]:
    """Give each job with what was made of it, in order, which raises what reading or working raises, where its turn comes.

    The threads end with it, also where it is left halfway: nothing reads files that are closed after it.
    """
    with closing(_in_order(jobs, load, memory, threads)) as results:
        yield results


def _in_order(jobs: Iterable[Job], load: Load[T], memory: int, threads: int) -> Generator[tuple[Job, T], None, None]:
    room, handed = _Room(memory, threads + BESIDE), SimpleQueue[tuple[Bundle, Future[list[T]]] | BaseException | None]()
    with ThreadPoolExecutor(threads, "mergd-work", settle_threads, (1,)) as workers:
        reader = threading.Thread(
            target=_read_ahead, args=(jobs, load, room, workers, threads, handed), name="mergd-read"
        )
        reader.start()
        try:
            while (item := handed.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                bundle, future = item
                made = future.result()[::-1]
                del item, future  # what was made lives no longer than whoever takes it wants
                for job in bundle:
                    yield job, made.pop()
                room.leave(bundle)
        finally:
            room.close()
            reader.join()
            workers.shutdown(cancel_futures=True)


def _read_ahead(
    jobs: Iterable[Job],
    load: Load[T],
    room: "_Room",
    workers: ThreadPoolExecutor,
    threads: int,
    handed: "SimpleQueue[tuple[Bundle, Future[list[T]]] | BaseException | None]",
) -> None:
    settle_threads(1)
    try:
        for bundle in _bundles(jobs):
            if not room.enter(bundle):
                return
            works = [load(job) for job in bundle]
            handed.put((bundle, workers.submit(_do, works, threads if bundle[0].alone else 1)))
        handed.put(None)
    except BaseException as error:  # noqa: BLE001 - it is raised where the results are taken
        handed.put(error)


def _bundles(jobs: Iterable[Job]) -> Iterator[Bundle]:
    """Yield the jobs, small ones together: to hand one over takes as long as some thousand sums."""
    bundle: list[Job] = []
    for job in jobs:
        if bundle and (job.alone or bundle[-1].alone or sum(one.nbytes for one in bundle) + job.nbytes > BUNDLE):
            yield tuple(bundle)
            bundle = []
        bundle.append(job)
    if bundle:
        yield tuple(bundle)


def _do(works: list[Callable[[], T]], threads: int) -> list[T]:
    """Do some work, one piece after the other, with so many threads."""
    with with_threads(threads):
        return [work() for work in works]


class _Room:
    """The memory for what is under way: a job enters when there is room for it, or when nothing else is in."""

    def __init__(self, nbytes: int, most: int) -> None:
        self._most = most  # jobs at once: more would only wait
        self._free, self._inside, self._alone, self._closed = nbytes, 0, False, False
        self._changed = threading.Condition()

    def enter(self, bundle: Bundle) -> bool:
        """Wait until there is room; returns whether to go on."""
        nbytes, alone = sum(job.nbytes for job in bundle), bundle[0].alone
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._fits(nbytes, alone))
            self._free -= nbytes
            self._inside += 1
            self._alone = alone
            return not self._closed

    def _fits(self, nbytes: int, alone: bool) -> bool:
        beside = nbytes <= self._free and self._inside < self._most and not alone and not self._alone
        return not self._inside or beside

    def leave(self, bundle: Bundle) -> None:
        with self._changed:
            self._free += sum(job.nbytes for job in bundle)
            self._inside -= 1
            self._changed.notify()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify()
