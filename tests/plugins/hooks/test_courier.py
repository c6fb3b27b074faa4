"""The courier: a notice is told until it is told or too old, and whoever gives it never waits."""

import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from support.commands import eventually
from support.notices import NOTICE

from mergd.plugins.hooks.courier import Courier, Ended, age
from mergd.plugins.sources.hub import backoff
from mergd.state.errors import Misconfigured, NotPermitted, Unavailable
from mergd.state.records import Notice

DAY = 86400.0


def happened(before: float = 0.0) -> Notice:
    """A notice of what happened so many seconds ago."""
    return replace(NOTICE, at=(datetime.now(UTC) - timedelta(seconds=before)).isoformat())


class Ear:
    """A hook in whose stead a test answers: `fail` has what the next tries end with."""

    def __init__(self) -> None:
        self.fail: list[Exception] = []
        self.heard: list[Notice] = []
        self.free = threading.Event()
        self.free.set()

    def tell(self, notice: Notice, stopped: Callable[[], bool]) -> str:
        while not self.free.wait(0.01):
            if stopped():
                raise Unavailable("it was stopped")
        self.heard.append(notice)
        if self.fail:
            raise self.fail.pop(0)
        return "heard"


@pytest.fixture
def ear() -> Ear:
    return Ear()


@pytest.fixture
def made(ear: Ear, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Courier]]:
    """Make couriers to that ear, which rest for a moment between tries unless `rest` says otherwise."""
    couriers = []

    def make(retry: float = DAY, rest: float = 0.001, wake: Callable[[], None] = lambda: None) -> Courier:
        monkeypatch.setattr(backoff, "FIRST", rest)
        couriers.append(Courier("deploy", ear, retry, wake))
        return couriers[-1]

    yield make
    for courier in couriers:
        courier.close()
        courier.join(60)


def test_what_was_told_is_to_be_noted_before_the_next_one(made: Callable[..., Courier], ear: Ear) -> None:
    woken = threading.Event()
    courier, notice = made(wake=woken.set), happened()
    assert courier.free
    courier.give(notice)
    assert woken.wait(60)
    assert (courier.ended, courier.free, courier.busy) == (Ended(notice), False, True)
    courier.noted()
    assert (courier.ended, courier.free, courier.busy) == (None, True, False)
    assert ear.heard == [notice]


def test_whoever_gives_never_waits(made: Callable[..., Courier], ear: Ear) -> None:
    ear.free.clear()
    courier = made()
    courier.give(happened())
    assert courier.busy
    eventually(lambda: courier.doing == "telling it of notice 7")
    ear.free.set()
    eventually(lambda: courier.ended)


def test_one_that_fails_is_told_the_same_again(
    made: Callable[..., Courier], ear: Ear, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    ear.fail = [Unavailable("down"), Unavailable("down"), ValueError("canary"), Unavailable("down")]
    courier, notice = made(), happened()
    courier.give(notice)
    eventually(lambda: courier.ended == Ended(notice))
    assert ear.heard == [notice] * 5
    assert courier.trouble == ""
    assert [record.getMessage() for record in caplog.records] == [
        "hook deploy: notice 7 (fold) is not told: down",
        "hook deploy: notice 7 (fold) is not told: an end of this error: ValueError",
        "hook deploy: notice 7 (fold) is not told: down",
        "hook deploy: notice 7 (fold) is told: heard",
    ]


def test_what_went_wrong_is_shown_while_it_rests(made: Callable[..., Courier], ear: Ear) -> None:
    woken = threading.Event()
    ear.fail = [Unavailable("down")]
    courier = made(rest=1000.0, wake=woken.set)
    courier.give(happened())
    assert woken.wait(60)
    assert (courier.trouble, courier.doing, courier.busy, courier.free) == ("down", "", False, False)


def test_one_that_is_too_old_is_tried_once_and_given_up(made: Callable[..., Courier], ear: Ear) -> None:
    ear.fail = [Unavailable("down")]
    courier, notice = made(), happened(DAY + 1)
    courier.give(notice)
    eventually(lambda: courier.ended == Ended(notice, "down"))
    assert ear.heard == [notice]
    courier.noted()
    courier.give(late := happened(DAY + 1))  # and the next one has its try at once
    eventually(lambda: courier.ended == Ended(late))


@pytest.mark.parametrize("lacks", [Misconfigured("no key"), NotPermitted("no key")])
def test_without_its_key_it_was_not_tried_however_old(made: Callable[..., Courier], ear: Ear, lacks: Exception) -> None:
    ear.fail = [lacks] * 2
    courier, notice = made(), happened(DAY + 1)
    courier.give(notice)
    eventually(lambda: courier.ended == Ended(notice))
    assert ear.heard == [notice] * 3


def test_one_is_given_up_when_its_time_is_over_however_long_the_rest(made: Callable[..., Courier], ear: Ear) -> None:
    ear.fail = [Unavailable("down")] * 1000
    courier, notice = made(retry=1.0, rest=1000.0), happened()
    courier.give(notice)
    eventually(lambda: courier.ended == Ended(notice, "down"))
    assert age(notice) >= 1.0
    assert len(ear.heard) >= 2


@pytest.mark.parametrize("resting", [True, False])
def test_an_end_is_waited_for_neither_in_a_try_nor_in_a_rest(
    made: Callable[..., Courier], ear: Ear, resting: bool, caplog: pytest.LogCaptureFixture
) -> None:
    woken: list[None] = []
    if resting:
        ear.fail = [Unavailable("down")]
    else:
        ear.free.clear()
    courier = made(rest=1000.0, wake=lambda: woken.append(None))
    courier.give(happened())
    eventually(lambda: courier.trouble if resting else courier.doing)
    before = len(caplog.records)
    courier.close()
    courier.join(60)
    assert courier.ended is None  # so that it is told again by the next one
    assert len(caplog.records) == before
    assert len(woken) == resting
