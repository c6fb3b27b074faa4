"""The tags in the history: one version a name, any number of names a version; and the moves that retention asks for."""

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from mergd.state.history import History
from mergd.state.records import Tag, Totals, Version


@pytest.fixture
def history(tmp_path: Path) -> Iterator[History]:
    """Nine versions, and no move yet."""
    with History(tmp_path / "mergd.db", write=True) as history:
        for number in range(1, 10):
            at = "2026-01-01T00:00:00.000Z"
            history._insert(Version(number, None, "fold", None, "opcm", Totals(), 1.0, "", at), [])
        yield history


def test_a_name_is_of_one_version_and_is_read_back(history: History) -> None:
    for name, number in (("b", 2), ("a", 2), ("c", 3), ("b", 4)):
        history.tags.put(name, number, f"who gave {name} to {number}")
    assert [(tag.name, tag.version, tag.who) for tag in history.tags.all()] == [
        ("a", 2, "who gave a to 2"), ("b", 4, "who gave b to 4"), ("c", 3, "who gave c to 3")]  # fmt: skip
    assert [history.tags.of(number) for number in (1, 2, 3, 4)] == [[], ["a"], ["c"], ["b"]]
    found = history.tags.get("a")
    assert isinstance(found, Tag)
    assert found.at.endswith("Z")
    history.tags.remove("a")
    assert history.tags.get("a") is None
    assert [tag.name for tag in history.tags.all()] == ["b", "c"]


def test_a_tag_outlives_the_process(history: History, tmp_path: Path) -> None:
    history.tags.put("a", 2, "somebody")
    history.close()
    with History(tmp_path / "mergd.db") as again:
        assert [(tag.name, tag.version) for tag in again.tags.all()] == [("a", 2)]


def test_a_tag_is_of_a_version_that_there_is(history: History) -> None:
    with pytest.raises(sqlite3.IntegrityError):
        history.tags.put("a", 10, "somebody")


def test_the_moves_that_keep_are_the_newest_and_those_of_people(history: History) -> None:
    whys = ["fold", "fold", "rollback", "replace", "rollback", "fold", "remove", "fold", "fold"]
    for number, why in enumerate(whys, start=1):
        history.move_head(number, "somebody", why, [])
    found = {last: [move.to_version for move in history.moves_that_keep(last)] for last in (1, 2, 3, 9)}
    assert found == {1: [9, 7], 2: [9, 7, 5], 3: [9, 7, 5, 3], 9: [9, 7, 5, 3]}
    history.move_head(1, "somebody", "rollback", [])
    assert [(move.to_version, move.by_person) for move in history.moves_that_keep(2)] == [(1, True), (7, True)]


def test_before_the_first_move_there_is_none_that_keeps(history: History) -> None:
    assert history.moves_that_keep(5) == []
