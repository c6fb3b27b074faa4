"""Which version is read next, as a pure plan; and a check that is held, goes on, and stops in the middle of a file."""

import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from support.commands import eventually
from support.merges import Sandbox

from mergd.daemon.checker import Checker
from mergd.daemon.scrubbing import DAY, due
from mergd.state.records import Totals, Version
from mergd.state.store import PARTS

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
MONTH = 30 * DAY


def version(number: int, written: float, read: float | None = None, damaged: str | None = None) -> Version:
    """Return a version that was written, and read, so many days ago."""
    made = Version(number, None, "fold", None, "average", Totals(), 1.0, "", ago(written), damaged=damaged)
    return replace(made, checked_at=None if read is None else ago(read))


def ago(days: float) -> str:
    return (NOW - timedelta(days=days)).isoformat()


CASES: dict[str, tuple[list[Version], int | None]] = {
    "nothing is kept": ([], None),
    "all were read within the month": ([version(1, 99, 29), version(2, 99, 1)], None),
    "what was read longest ago comes first": ([version(1, 99, 40), version(2, 99, 50), version(3, 99, 1)], 2),
    "what was never read counts from when it was written": ([version(1, 45), version(2, 99, 40), version(3, 9, 2)], 1),
    "a head that was never read comes before all": ([version(1, 99), version(2, 2)], 2),
    "but not on its first day": ([version(1, 99), version(2, 0.5)], 1),
    "what is damaged is not read again": ([version(1, 99, damaged="models/000001/x"), version(2, 9, 2)], None),
    "of two of the same age the older version": ([version(1, 40), version(2, 40), version(3, 40, 1)], 1),
    "a clock that was set back": ([version(1, 99, -5), version(2, 99, -9)], None),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_due(case: str) -> None:
    versions, number = CASES[case]
    chosen = due(versions, versions[-1] if versions else None, NOW, MONTH)
    assert (chosen.number if chosen else None) == number


def test_nothing_is_due_where_scrubbing_is_off() -> None:
    assert due([version(1, 999)], None, NOW, 0) is None


def test_every_version_is_read_within_the_period_and_a_day_however_many_are_folded() -> None:
    read: dict[int, float] = {}
    for day in range(200):
        now = NOW + timedelta(days=day)
        versions = [replace(version(n, 0), created_at=NOW.isoformat()) for n in (1, 2, 3)]
        versions.append(replace(version(100 + day, 0), created_at=now.isoformat()))  # a new head each day
        for _ in range(4):
            known = [
                replace(v, checked_at=(NOW + timedelta(days=read[v.number])).isoformat()) if v.number in read else v
                for v in versions
            ]
            chosen = due(known, known[-1], now, MONTH)
            if chosen is not None:
                assert day - read.get(chosen.number, 0) <= 31
                read[chosen.number] = day
    assert {n: read[n] for n in (1, 2, 3)} == dict.fromkeys((1, 2, 3), 180)


# ------------------------------------------------------------------------------------------------------------- checks


@pytest.fixture
def checker(merge: Sandbox) -> Iterator[Checker]:
    merge.drop("a", 1)
    merge.fold_all()
    woken = threading.Event()
    checker = Checker(merge.store, woken.set)
    yield checker
    checker.close()


def test_a_check_that_is_held_goes_on_later(checker: Checker) -> None:
    checker.start(1, PARTS, hurried=False)
    checker.hold(True)
    checker.hold(False)
    eventually(checker.ended)
    found = checker.take()
    assert found is not None
    assert found.damaged == ()
    assert any(name.endswith("manifest.json") for name in found.stamps)


def test_a_check_gives_way_to_what_somebody_waits_for(checker: Checker, merge: Sandbox) -> None:
    with (merge.store.model(1) / "model.safetensors").open("r+b") as file:
        file.truncate(2**40)  # it would take hours
    checker.start(1, PARTS, hurried=False)
    checker.give_way()
    eventually(checker.ended)
    assert checker.take() is None
    assert checker.version is None


def test_closing_stops_a_check_in_the_middle_of_a_file(checker: Checker, merge: Sandbox) -> None:
    with (merge.store.model(1) / "model.safetensors").open("r+b") as file:
        file.truncate(2**40)
    checker.start(1, PARTS, hurried=True)
    checker.hold(True)  # what somebody waits for is not held
    checker.close()
    assert checker.ended()


def test_a_check_that_cannot_be_done_says_nothing_of_the_version(
    checker: Checker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*words: object) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr("mergd.daemon.checker._hashed", fail)
    checker.start(1, PARTS, hurried=True)
    eventually(checker.ended)
    assert checker.take() is None
