"""The folding thread: work that is told to stop does not keep anybody waiting, and leaves nothing behind."""

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.commands import eventually

from mergd.daemon.hands import Hands
from mergd.daemon.progress import Progress
from mergd.state.errors import Abandoned
from mergd.state.store import Draft


@pytest.fixture
def woken() -> list[str]:
    return []


@pytest.fixture
def hands(woken: list[str]) -> Iterator[Hands[str]]:
    hands: Hands[str] = Hands(lambda: woken.append("woken"))
    yield hands
    hands.close()


def test_work_ends_with_what_it_made(hands: Hands[str], woken: list[str]) -> None:
    hands.start("a", lambda progress: "made")
    assert not hands.free
    eventually(hands.ended)
    assert hands.take() == ("a", "made")
    assert hands.free
    assert woken == ["woken"]


def test_work_ends_with_what_it_raised(hands: Hands[str]) -> None:
    hands.start("a", lambda progress: 1 // 0)
    job, error = hands.take()
    assert job == "a"
    assert isinstance(error, ZeroDivisionError)


@dataclass
class Made:
    draft: Draft


def test_abandoning_waits_for_nobody_and_what_was_made_all_the_same_is_dropped(
    hands: Hands[str], tmp_path: Path
) -> None:
    begun, go_on = threading.Event(), threading.Event()
    draft = Draft(tmp_path / "draft")

    def work(progress: Progress) -> Made:
        begun.set()
        go_on.wait()  # one long step, such as a decomposition, which nothing interrupts
        return Made(draft)

    hands.start("a", work)
    begun.wait()
    abandoned = hands.abandon()
    assert abandoned is not None
    assert abandoned[0] == "a"
    assert isinstance(abandoned[1], Abandoned)
    assert hands.job is None
    assert not hands.ended()
    assert not hands.free  # the thread is still in that step
    assert hands.abandon() is None
    go_on.set()
    eventually(lambda: hands.free)
    assert not draft.folder.exists()


def test_abandoned_work_stops_at_its_next_step(hands: Hands[str]) -> None:
    begun, go_on, steps = threading.Event(), threading.Event(), list[int]()

    def work(progress: Progress) -> None:
        for step in range(5):
            steps.append(step)
            begun.set()
            go_on.wait()
            progress.advance(1)

    hands.start("a", work)
    begun.wait()
    hands.abandon()
    go_on.set()
    eventually(lambda: hands.free)
    assert steps == [0]
    hands.start("b", work)  # and the next is not told to stop
    assert hands.take() == ("b", None)
    assert steps == [0, 0, 1, 2, 3, 4]
