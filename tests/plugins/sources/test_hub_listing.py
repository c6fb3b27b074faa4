"""Which repositories of a namespace count, and for how long a Hub that failed is left alone."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mergd.plugins.sources.hub.backoff import FIRST, LONGEST, Backoff
from mergd.plugins.sources.hub.listing import SKEW, Listed, Wanted, since

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


@given(st.floats(0, 10_000))
def test_what_the_hub_asks_for_is_kept(asked: float) -> None:
    backoff = Backoff().failed(1000.0, asked)
    assert 1000.0 + min(asked, LONGEST) <= backoff.until <= 1000.0 + LONGEST + FIRST
    assert backoff.rests(1000.0) == (backoff.until > 1000.0)


def test_a_clock_that_was_set_back_lengthens_no_rest() -> None:
    assert not Backoff(1, until=1e9).rests(1e9 - 3 * LONGEST)
