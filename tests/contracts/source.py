"""What every source must keep to: subclass SourceContract and say how a checkpoint gets there and how it goes."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mergd.plugins.sources.interface import Source
from mergd.state.errors import Unavailable

PATIENCE = 20.0  # seconds


class SourceContract:
    """The cases; none may be skipped."""

    @pytest.fixture
    def source(self) -> Iterator[Source]:
        raise NotImplementedError

    def put(self, name: str, seed: int) -> Path:
        """Let a checkpoint appear, or change; returns its place."""
        raise NotImplementedError

    def take_away(self, name: str) -> None:
        """Let a checkpoint go."""
        raise NotImplementedError

    def break_off(self) -> None:
        """Make that the source cannot be looked at."""
        raise NotImplementedError

    def mend(self) -> None:
        """Make that it can be looked at again; it may have lost what it held."""
        raise NotImplementedError

    def test_it_has_a_name_for_good(self, source: Source) -> None:
        assert source.name == source.name != ""

    def test_where_nothing_is_nothing_is_seen(self, source: Source) -> None:
        assert source.scan(None).sightings == ()

    def test_a_scan_sees_all_that_is_there_by_name(self, source: Source) -> None:
        places = {str(self.put(name, 1)): name for name in ("c", "a", "b")}
        sightings = source.scan(None).sightings
        assert [sighting.name for sighting in sightings] == ["a", "b", "c"]
        assert {sighting.place: sighting.name for sighting in sightings} == places
        assert {sighting.source for sighting in sightings} == {source.name}

    def test_the_same_scan_again_sees_the_same(self, source: Source) -> None:
        self.put("a", 1)
        assert source.scan(None).sightings == source.scan(None).sightings

    def test_one_place_is_seen_as_the_scan_sees_it(self, source: Source) -> None:
        place = self.put("a", 1)
        assert (source.sight(place),) == source.scan(None).sightings

    def test_what_changes_has_another_fingerprint(self, source: Source) -> None:
        place = self.put("a", 1)
        before = source.sight(place)
        self.put("a", 2)
        after = source.sight(place)
        assert before is not None
        assert after is not None
        assert before.fingerprint != after.fingerprint

    def test_what_is_gone_is_not_seen(self, source: Source) -> None:
        place = self.put("a", 1)
        self.put("b", 2)
        self.take_away("a")
        assert source.sight(place) is None
        assert [sighting.name for sighting in source.scan(None).sightings] == ["b"]

    def test_a_mark_hides_nothing_that_is_new(self, source: Source) -> None:
        self.put("a", 1)
        mark = source.scan(None).mark
        self.put("b", 2)
        assert "b" in [sighting.name for sighting in source.scan(mark).sightings]

    def test_it_wakes_the_scan_when_something_appears(self, source: Source) -> None:
        woken = threading.Event()
        source.watch(woken.set)
        self.put("a", 1)
        assert woken.wait(PATIENCE)

    def test_an_error_of_those_whom_it_wakes_does_not_end_the_watch(self, source: Source) -> None:
        woken = threading.Semaphore(0)

        def fail() -> None:
            woken.release()
            raise ArithmeticError("a test")

        source.watch(fail)
        for name in ("a", "b"):
            self.put(name, 1)
            assert woken.acquire(timeout=PATIENCE)
            time.sleep(0.1)
            while woken.acquire(blocking=False):
                pass

    def test_after_its_end_it_wakes_nobody(self, source: Source) -> None:
        calls: list[int] = []
        source.watch(lambda: calls.append(1))
        source.close()
        before = len(calls)
        self.put("a", 1)
        time.sleep(0.2)
        assert len(calls) == before

    def test_it_may_be_closed_unwatched_and_twice(self, source: Source) -> None:
        source.close()
        source.close()

    def test_it_can_be_looked_at_without_being_watched(self, source: Source) -> None:
        source.close()
        self.put("a", 1)
        assert [sighting.name for sighting in source.scan(None).sightings] == ["a"]

    def test_while_it_cannot_look_it_is_unavailable_and_then_goes_on(self, source: Source) -> None:
        woken = threading.Event()
        source.watch(woken.set)
        self.break_off()
        with pytest.raises(Unavailable) as raised:
            source.scan(None)
        assert raised.value.hint
        self.mend()
        source.scan(None)
        woken.clear()
        self.put("a", 1)
        assert woken.wait(PATIENCE)
        assert [sighting.name for sighting in source.scan(None).sightings] == ["a"]
