"""Tags: what may be one, and that it can be taken for nothing else."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.merges import Sandbox

from mergd.daemon.naming import find_version
from mergd.daemon.requests import Tag
from mergd.daemon.tagging import check_name, tag
from mergd.state.errors import Usage
from mergd.state.history import History

GOOD = [
    "good",
    "v1.0",
    "v1.0-rc1",
    "stable/2026-01",
    "a",
    "_",
    "2026.01",
    "heads/1",
    "header",
    "A+b",
    "x" * 100,
    "v7a",
    "7a",
]
BAD = [
    "", "7", "v7", "V7", "007", "99999999999999999999", "head", "HEAD", "head~2", "v٣", "٣", ".", "..", "a..b", ".hidden",
    "a/.b", "a/../b", "/a", "a/", "a//b", "a.", "-d", "--force", "a b", "a\nb", "a\x00", "a\x1b[1m", "a~1", "a^", "a:b",
    "a?", "a*", "a[b", "a\\b", "a@{1}", "@", "a.lock", "a.lock/b", "ü", "x" * 101,
]  # fmt: skip


@pytest.fixture
def history(merge: Sandbox) -> Iterator[History]:
    """One version."""
    merge.drop("a", 1)
    merge.fold_all()
    with History(merge.store.database, write=True) as history:
        yield history


@pytest.mark.parametrize("name", GOOD)
def test_a_name_that_may_be_a_tag(name: str, history: History) -> None:
    assert tag(Tag(name=name), history, "a test")["version"] == 1
    assert find_version(history, name).number == 1


@pytest.mark.parametrize("name", BAD)
def test_a_name_that_may_not(name: str) -> None:
    with pytest.raises(Usage) as raised:
        check_name(name)
    assert raised.value.hint
    assert str(raised.value).isprintable()


@given(st.text(max_size=8) | st.text("v70hea./~-_ld\\", max_size=6))
def test_no_tag_is_a_version_a_path_or_an_option(name: str) -> None:
    try:
        check_name(name)
    except Usage:
        return
    assert not name.removeprefix("v").isdecimal()
    assert name.lower() != "head"
    assert not {"~", "\\"} & set(name)
    assert not name.startswith(("-", "/", "."))
    assert Path("/there", name).resolve() == Path(f"/there/{name}")


def test_a_damaged_version_gets_no_tag(history: History) -> None:
    history._db.execute("update versions set damaged = 'model.safetensors'")
    with pytest.raises(Usage, match=r"v1 is damaged \(model.safetensors\)"):
        tag(Tag(name="good"), history, "a test")
    assert history.tags.all() == []
