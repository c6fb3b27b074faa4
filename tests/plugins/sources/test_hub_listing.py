"""Which repositories of a namespace count, what polls make of listings, and for how long a Hub that failed is left alone."""

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.commands import eventually

from mergd.plugins.sources.hub.aside import MOST, Aside
from mergd.plugins.sources.hub.backoff import FIRST, LONGEST, MOST_ASKED, Backoff
from mergd.plugins.sources.hub.client import _seconds_of
from mergd.plugins.sources.hub.listing import SKEW, Listed, Wanted, since
from mergd.plugins.sources.hub.namespace import Namespace
from mergd.state.errors import Unavailable

NOW = datetime(2026, 1, 1, tzinfo=UTC)
BASE = "org/base"
CLAIM = f"base_model:finetune:{BASE}"


def listed(repo: str = "acme/a", *tags: str, hours: float = 0.0) -> Listed:
    return Listed(repo, "0" * 40, NOW - timedelta(hours=hours), frozenset(tags))


@pytest.mark.parametrize(
    ("tags", "taken"),
    [
        ((CLAIM,), True),
        ((f"base_model:{BASE}",), True),
        ((f"base_model:adapter:{BASE}",), True),
        ((f"base_model:adapter:{BASE}", f"base_model:{BASE}"), True),
        ((f"base_model:quantized:{BASE}", f"base_model:{BASE}"), False),
        ((f"base_model:merge:{BASE}", f"base_model:{BASE}"), False),
        (("base_model:merge:other/one", CLAIM), False),
        (("base_model:finetune:org/base-large",), False),
        (("base_model:finetune:other-org/base",), False),
        ((CLAIM, "mergd"), False),
        ((), False),
    ],
)
def test_a_card_must_name_the_base_as_what_it_was_trained_from(tags: tuple[str, ...], taken: bool) -> None:
    assert Wanted(BASE).takes(listed("acme/a", *tags)) == taken


def test_where_no_base_is_known_any_counts_that_is_no_merge_and_not_quantised() -> None:
    assert Wanted().takes(listed("acme/a"))
    assert Wanted().takes(listed("acme/a", "base_model:finetune:any/base"))
    assert not Wanted().takes(listed("acme/a", "base_model:quantized:any/base"))
    assert not Wanted().takes(listed("acme/a", "mergd"))


@pytest.mark.parametrize(
    ("repo", "taken"),
    [("acme/llama-1", True), ("acme/llama-1-GGUF", False), ("acme/other", False), ("acme/Llama-1", False)],
)
def test_names_must_match_and_denying_goes_before_allowing(repo: str, taken: bool) -> None:
    assert Wanted(BASE, allow=("acme/llama-*",), deny=("*-GGUF",)).takes(listed(repo, CLAIM)) == taken


def test_where_our_own_versions_are_published_nothing_is_taken() -> None:
    assert not Wanted(BASE, own="acme/merged").takes(listed("acme/merged", CLAIM))


@given(st.lists(st.floats(0, 100), max_size=20), st.floats(0, 100))
def test_a_listing_is_read_until_what_was_known_and_an_hour_more(ages: list[float], known: float) -> None:
    newest_first = [listed(f"acme/{k}", hours=age) for k, age in enumerate(sorted(ages))]
    mark = NOW - timedelta(hours=known)
    found = list(since(newest_first, mark))
    assert found == [one for one in newest_first if one.modified >= mark - SKEW]
    assert list(since(newest_first, None)) == newest_first


def test_nothing_is_asked_for_that_lies_behind_the_mark() -> None:
    asked = iter([listed("acme/new"), listed("acme/old", hours=5), listed("acme/older", hours=6)])
    assert [one.repo for one in since(asked, NOW)] == ["acme/new"]
    assert next(asked).repo == "acme/older"


@given(st.integers(1, 40), st.floats(0, 1e9))
def test_who_fails_again_and_again_rests_longer_but_never_too_long(times: int, now: float) -> None:
    backoff = Backoff()
    for k in range(times):
        backoff = backoff.failed(now)
        assert now <= backoff.until <= now + min(LONGEST, FIRST * 2**k)


@given(st.floats(0, 1e6))
def test_what_the_hub_asks_for_is_kept(asked: float) -> None:
    backoff = Backoff().failed(1000.0, asked)
    rest = min(asked, MOST_ASKED)
    assert 1000.0 + rest <= backoff.until <= 1000.0 + max(rest, FIRST) + FIRST
    assert backoff.rests(1000.0) == (backoff.until > 1000.0)


def test_a_rest_may_be_asked_for_by_a_date() -> None:
    asked = format_datetime(datetime.now(UTC) + timedelta(hours=2), usegmt=True)
    assert _seconds_of({"Retry-After": asked}) == pytest.approx(7200, abs=600)
    assert _seconds_of({"Retry-After": "Thu, 01 Jan 1970 00:00:00 GMT"}) == 0
    assert _seconds_of({"Retry-After": "7201"}) == 7201
    assert _seconds_of({"Retry-After": "soon"}) is None


def test_a_clock_that_was_set_back_lengthens_no_rest() -> None:
    assert not Backoff(1, until=1e9).rests(1e9 - 3 * LONGEST)


# --------------------------------------------------------------------------------------------------------------- polls


def at(repo: str, commit: str, minutes: float = 0) -> Listed:
    return Listed(f"acme/{repo}", commit * 40, NOW + timedelta(minutes=minutes), frozenset())


def watching(root: Path, monkeypatch: pytest.MonkeyPatch, listing: Callable[[], Iterable[Listed]]) -> Namespace:
    """Return a namespace that lists what `listing` gives."""
    monkeypatch.setattr("mergd.plugins.sources.hub.namespace.newest_first", lambda namespace: listing())
    return Namespace("acme", Wanted("", ("acme/*",)), root / "spool")


def seen(source: Namespace) -> dict[str, str]:
    return {sighting.name: sighting.revision[0] for sighting in source.scan(None).sightings}


def test_of_two_polls_at_once_the_older_answer_does_not_undo_the_newer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listings = [[at("a", "a")], [at("a", "b", 1), at("new", "c", 1)]]
    asked, go_on = threading.Event(), threading.Event()

    def listing() -> Iterator[Listed]:
        found, first = listings.pop(0), not asked.is_set()
        asked.set()
        assert not first or go_on.wait(30)
        yield from found

    source = watching(tmp_path, monkeypatch, listing)
    with ThreadPoolExecutor(2) as threads:
        threads.submit(source.poll)
        assert asked.wait(30)
        second = threads.submit(source.poll)
        wait([second], 0.5)
        go_on.set()
    assert seen(source) == {"acme/a": "b", "acme/new": "c"}


def test_what_is_gone_but_still_listed_is_passed_over_until_it_has_another_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listings = [[at("a", "a")], [at("a", "a")], [at("a", "b")]]
    source = watching(tmp_path, monkeypatch, lambda: listings.pop(0))
    source.poll()
    source._note_gone("acme/a", "a" * 40)
    source.poll()
    assert seen(source) == {}
    source.poll()
    assert seen(source) == {"acme/a": "b"}


def test_while_several_polls_hang_no_more_is_asked() -> None:
    hang, asked, aside = threading.Event(), [], Aside(threading.Event())

    def ask() -> str:
        asked.append(1)
        hang.wait(30)
        return "an answer"

    try:
        for _ in range(MOST + 3):
            with pytest.raises(Unavailable, match="took too long"):
                aside.ask(ask, 0.01)
        assert len(asked) == MOST
    finally:
        hang.set()
    eventually(lambda: not any(thread.is_alive() for thread in aside._left))
    assert aside.ask(ask, 30) == "an answer"
