"""A pass reads ahead and works on several jobs at once: in order, within the memory, and with no thread left behind."""

import threading
import time
from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mergd.daemon.overlapping import Job, overlapped
from mergd.state.records import Weight

W = Weight("w", (4, 4), "matrix")


@pytest.fixture(autouse=True)
def _one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mergd.daemon.overlapping.BUNDLE", 0)


def jobs(sizes: list[int], alone: frozenset[int] = frozenset()) -> list[Job]:
    return [Job(W, (i, i + 1), size, alone=i in alone) for i, size in enumerate(sizes)]


class Watched:
    """Reads and works, and takes down what is under way at once."""

    def __init__(self, wait: Callable[[int], None] = lambda number: None) -> None:
        self.inside: dict[int, int] = {}  # job -> bytes
        self.most, self.together, self.order = 0, set[frozenset[int]](), list[int]()
        self._lock, self._wait = threading.Lock(), wait

    def load(self, job: Job) -> Callable[[], int]:
        assert job.rows is not None
        number = job.rows[0]
        with self._lock:
            self.inside[number] = job.nbytes
            self.order.append(number)
            self.most = max(self.most, sum(self.inside.values()))
            self.together.add(frozenset(self.inside))

        def work() -> int:
            self._wait(number)
            return number

        return work

    def taken(self, number: int) -> None:
        with self._lock:
            del self.inside[number]


def run(
    sizes: list[int], memory: int, threads: int, watched: Watched, alone: frozenset[int] = frozenset()
) -> list[int]:
    found = []
    with overlapped(jobs(sizes, alone), watched.load, memory, threads) as results:
        for job, number in results:
            assert job.rows == (number, number + 1)
            found.append(number)
            watched.taken(number)
    return found


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 12), max_size=12), st.integers(1, 20), st.integers(1, 3), st.sets(st.integers(0, 11)))
def test_results_come_in_order_and_within_the_memory(
    sizes: list[int], memory: int, threads: int, alone: set[int]
) -> None:
    watched = Watched()
    assert run(sizes, memory, threads, watched, frozenset(alone)) == list(range(len(sizes)))
    assert watched.order == list(range(len(sizes)))
    assert watched.most <= max([memory, *sizes])  # what alone is larger goes by itself
    assert all(len(inside) == 1 for inside in watched.together if inside & alone)


@pytest.mark.parametrize("bundle", [1, 7, 100])
def test_small_jobs_are_handed_over_together(monkeypatch: pytest.MonkeyPatch, bundle: int) -> None:
    monkeypatch.setattr("mergd.daemon.overlapping.BUNDLE", bundle)
    watched = Watched()
    sizes = [3, 1, 2, 9, 1, 1, 1, 1, 0, 4]
    assert run(sizes, 20, 2, watched, frozenset({5})) == list(range(len(sizes)))
    assert watched.order == list(range(len(sizes)))


def test_the_next_is_read_and_worked_on_while_one_is_worked_on() -> None:
    both = threading.Barrier(2, timeout=10)
    watched = Watched(lambda number: both.wait() if number < 2 else None)  # type: ignore[arg-type]
    assert run([1] * 6, 10, 2, watched) == list(range(6))
    assert max(map(len, watched.together)) > 2


def test_what_is_alone_has_all_threads_and_the_others_one_each() -> None:
    seen: dict[int, int] = {}
    watched = Watched(lambda number: seen.update({number: torch.get_num_threads()}))
    run([1] * 5, 10, 2, watched, frozenset({2}))
    assert seen == {0: 1, 1: 1, 2: 2, 3: 1, 4: 1}


@pytest.mark.parametrize("where", ["reading", "working", "taking"])
def test_an_error_ends_it_where_it_is_due_and_leaves_no_thread(where: str) -> None:
    def load(job: Job) -> Callable[[], int]:
        assert job.rows is not None
        number = job.rows[0]
        if where == "reading" and number == 3:
            raise OSError("read")

        def work() -> int:
            if where == "working" and number == 3:
                raise ValueError("worked")
            return number

        return work

    before, found = set(threading.enumerate()), []

    def take() -> None:
        with overlapped(jobs([1] * 9), load, 4, 2) as results:
            for _, number in results:
                found.append(number)
                if where == "taking" and number == 3:
                    raise KeyError("taken")

    with pytest.raises((OSError, ValueError, KeyError)):
        take()
    assert found == list(range(4 if where == "taking" else 3))
    assert set(threading.enumerate()) == before


def test_who_stops_halfway_waits_for_what_is_under_way_alone() -> None:
    def endless() -> Iterator[Job]:
        while True:
            yield Job(W, (0, 1), 1)

    before, ended = set(threading.enumerate()), list[int]()

    def load(job: Job) -> Callable[[], None]:
        def work() -> None:
            time.sleep(0.01)
            ended.append(1)

        return work

    with overlapped(endless(), load, 5, 2) as results:
        next(results)
    assert set(threading.enumerate()) == before
    assert len(ended) < 10
