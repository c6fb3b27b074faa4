"""The hook that pushes: one move after the other, each until it is there, while whoever tells it never waits."""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.commands import eventually

from mergd.plugins.hooks.hub_push import DAY, FORBIDDEN, HubPush
from mergd.plugins.sources.hub.backoff import MOST_ASKED, Backoff
from mergd.plugins.sources.hub.client import Limited
from mergd.plugins.sources.hub.target import Done, Push, Rejected, Target, Withheld, read_token
from mergd.state.errors import Busy, MergdError, Misconfigured, NotPermitted, Unavailable
from mergd.state.records import News

MOVES = 9  # that there are


class Shelf:
    """What is known of nine moves, each to the version of its number; some have no files any more."""

    def __init__(self) -> None:
        self.dropped: set[int] = set()
        self.noted: list[tuple[int, str]] = []
        self.rests: list[Backoff] = []
        self.newest = MOVES

    def plan(self, news: News) -> Push | None:
        if news.id in self.dropped:
            return None
        return Push(news.id, news.version, Path("/gone"), "", "", last=news.id == self.newest)

    plan_aside = plan

    def note(self, push: Push, commit: str) -> None:
        self.noted.append((push.move, commit))

    def rest(self, backoff: Backoff) -> None:
        self.rests.append(backoff)


class Place:
    """A repository in whose stead a test answers: `fail` has what the next pushes end with."""

    repo = "org/merged"

    def __init__(self) -> None:
        self.fail: list[Exception] = []
        self.astray = ""
        self.stopped: Callable[[], bool] = lambda: False
        self.tried: list[int] = []
        self.free = threading.Event()
        self.free.set()

    def push(self, push: Push, tell: Callable[[str], None], anew: Callable[[], Push | None]) -> Done:
        self.tried.append(push.move)
        tell("1 of 2 files")
        while not self.free.wait(0.01):
            if self.stopped():
                raise Unavailable("stopping")
        if self.fail:
            raise self.fail.pop(0)
        return Done(f"commit {push.move}", self.astray)


class Bench:
    """A hook with its surroundings."""

    def __init__(self) -> None:
        self.shelf, self.place, self.woken = Shelf(), Place(), threading.Semaphore(0)
        self.hook = self.start(Backoff())

    def start(self, backoff: Backoff) -> HubPush:
        return HubPush(self.make, self.shelf, self.woken.release, backoff)

    def make(self, stopped: Callable[[], bool]) -> Target:
        self.place.stopped = stopped
        return self.place  # type: ignore[return-value]

    def tell(self, move: int) -> bool:
        """Tell of a move; returns whether it is done with."""
        try:
            self.hook.tell(News(move, move, move - 1, "a test", "fold", "/gone", "", ""))
        except Busy:
            return False
        return True

    def tell_until_woken(self, move: int) -> bool:
        """Tell of a move, and again when it asks for that."""
        return self.tell(move) or (self.woken.acquire(timeout=60) and self.tell(move))


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.place.free.set()
    bench.hook.close()


def test_telling_returns_at_once_and_is_done_with_when_it_is_pushed(bench: Bench) -> None:
    bench.place.free.clear()
    assert not bench.tell(1)
    eventually(lambda: bench.hook.doing == "pushing v1: 1 of 2 files")
    assert bench.hook.busy
    assert not bench.tell(1)
    bench.place.free.set()
    assert bench.woken.acquire(timeout=60)
    assert bench.tell(1)
    assert bench.shelf.noted == [(1, "commit 1")]
    assert (bench.hook.busy, bench.hook.doing, bench.place.tried) == (False, "", [1])


def test_each_is_pushed_once_in_the_order_of_the_moves(bench: Bench) -> None:
    assert all(bench.tell_until_woken(move) for move in range(1, 5))
    assert bench.place.tried == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("error", "least", "most"),
    [
        (Unavailable("no answer"), 0, 6),
        (Limited("429", 40.0), 40, 46),
        (Limited("429", 1e9), MOST_ASKED, MOST_ASKED + 6),
        (NotPermitted("403"), FORBIDDEN, FORBIDDEN + 1),
        (RuntimeError("a bug"), 0, 6),
    ],
)
def test_after_a_failure_the_hub_is_left_alone_for_as_long_as_it_wants(
    bench: Bench, error: Exception, least: float, most: float
) -> None:
    bench.place.fail, began = [error], time.time()
    assert not bench.tell_until_woken(1)
    assert least <= bench.shelf.rests[-1].until - began <= most + time.time() - began
    assert bench.hook.trouble
    bench.hook.again(bench.make, stop=False)
    assert bench.woken.acquire(timeout=60)
    assert bench.tell_until_woken(1)
    assert bench.hook.trouble == ""


def test_a_rest_outlives_a_restart(bench: Bench) -> None:
    bench.hook = bench.start(Backoff(3, time.time() + 300))
    assert not bench.tell(1)
    assert not bench.hook.busy  # nothing to wait for
    bench.hook.close()
    assert bench.place.tried == []


def test_a_rest_that_is_over_is_followed_by_another_try(bench: Bench) -> None:
    bench.hook = bench.start(Backoff(1, time.time() + 0.1))
    assert not bench.tell_until_woken(1)
    assert bench.tell_until_woken(1)


SET_ASIDE = pytest.mark.parametrize(
    "error", [Withheld("for nobody's eyes", "hide it"), Rejected("413", "make it smaller")]
)


@SET_ASIDE
def test_what_is_set_aside_waits_for_the_next_move_and_is_then_passed_over(bench: Bench, error: MergdError) -> None:
    bench.shelf.newest = 1
    bench.place.fail = [error]
    assert not bench.tell_until_woken(1)
    assert not bench.tell(1)
    assert (bench.place.tried, bench.hook.trouble, bench.hook.busy) == ([1], f"{error}; {error.hint}", False)
    assert bench.shelf.rests == []  # that is no outage
    bench.shelf.newest = 2
    bench.place.fail = [error]
    assert bench.tell_until_woken(1)
    assert bench.tell_until_woken(2)
    assert bench.shelf.noted == [(2, "commit 2")]
    assert bench.place.tried == [1, 1, 2]


def test_what_is_withheld_is_pushed_at_the_next_move_if_it_may_be(bench: Bench) -> None:
    bench.shelf.newest = 1
    bench.place.fail = [Withheld("for nobody's eyes")]
    assert not bench.tell_until_woken(1)
    bench.shelf.newest = 2
    assert bench.tell_until_woken(1)
    assert bench.shelf.noted == [(1, "commit 1")]


@SET_ASIDE
def test_what_is_set_aside_is_tried_again_at_a_reload_and_once_a_day(
    bench: Bench, error: MergdError, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.shelf.newest = 1
    bench.place.fail = [error, error]
    assert not bench.tell_until_woken(1)
    bench.hook.again(bench.make, stop=False)
    assert not bench.tell_until_woken(1)
    assert bench.place.tried == [1, 1]
    assert not bench.tell(1)
    monkeypatch.setattr(time, "monotonic", lambda now=time.monotonic: now() + DAY)
    assert bench.tell_until_woken(1)
    assert bench.place.tried == [1, 1, 1]


def test_settings_that_change_end_what_is_pushed_by_others_and_it_begins_anew(bench: Bench) -> None:
    bench.place.free.clear()
    assert not bench.tell(1)
    eventually(lambda: bench.place.tried)
    bench.hook.again(bench.make, stop=False)  # nothing that concerns it
    assert not bench.place.stopped()
    bench.hook.again(bench.make, stop=True)
    assert bench.woken.acquire(timeout=60)
    assert not bench.tell(1)
    assert (bench.shelf.rests, bench.hook.trouble) == ([], "")
    bench.place.free.set()
    assert bench.woken.acquire(timeout=60)
    assert bench.tell(1)
    assert bench.place.tried == [1, 1]


def test_what_is_to_be_pushed_is_planned_again_after_a_rest(bench: Bench) -> None:
    bench.hook = bench.start(Backoff(3, time.time() + 300))
    assert not bench.tell(1)
    bench.shelf.dropped = {1}  # meanwhile
    bench.hook.again(bench.make, stop=False)
    assert bench.woken.acquire(timeout=60)
    assert bench.tell(1)
    assert (bench.place.tried, bench.shelf.noted) == ([], [])


def test_a_tag_that_leads_astray_is_told_of_until_somebody_says_that_it_is_mended(bench: Bench) -> None:
    bench.place.astray = "to move it: hf"
    assert bench.tell_until_woken(1)
    bench.place.astray = ""
    assert bench.tell_until_woken(2)
    assert bench.hook.trouble == "to move it: hf"
    bench.hook.again(bench.make, stop=False)
    assert bench.hook.trouble == ""


def test_a_version_without_files_is_passed_over_even_after_a_failure(bench: Bench) -> None:
    bench.place.fail = [Unavailable("no answer")]
    assert not bench.tell_until_woken(1)
    bench.shelf.dropped = {1}
    bench.hook.again(bench.make, stop=False)
    bench.place.fail = [Unavailable("its files are gone")]
    assert bench.woken.acquire(timeout=60)
    assert bench.tell(1)
    assert bench.shelf.noted == []


def test_an_end_waits_for_nobody_who_keeps_silent(bench: Bench) -> None:
    bench.place.free.clear()
    assert not bench.tell(1)
    eventually(lambda: bench.place.tried)
    bench.hook.close()
    assert bench.place.stopped()
    bench.place.free.set()
    assert not bench.woken.acquire(timeout=0.1)  # nobody is there any more


@pytest.mark.parametrize("content", [None, b"", b" \n", b"\xff\xfe"])
def test_a_file_without_a_token_is_misconfigured(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "token"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(Misconfigured, match="write_token"):
        read_token(path)
