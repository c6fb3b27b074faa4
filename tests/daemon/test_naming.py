"""What people call versions and checkpoints, and what they are told where a name says too little."""

import os
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import Mock

import pytest
from support.merges import Sandbox

from mergd.daemon.naming import absolute, find_checkpoint, find_version
from mergd.state import checkpoints
from mergd.state.errors import Usage
from mergd.state.history import History
from mergd.state.records import Sighting


@pytest.fixture
def history(merge: Sandbox) -> Iterator[History]:
    """Three versions in a line, then a fourth that branches off the first; the head is the fourth."""
    for name in ("b", "c", "a"):
        merge.drop(name, ord(name))
        merge.fold_all()
    with History(merge.store.database, write=True) as history:
        history.move_head(1, "a test", "rollback", [])
    merge.drop("d.safetensors", 4)
    merge.fold_all()
    with History(merge.store.database) as history:
        yield history


@pytest.mark.parametrize(
    ("text", "number"), [("1", 1), ("v1", 1), ("v3", 3), ("4", 4), ("head", 4), ("head~0", 4), ("head~1", 1)]
)
def test_a_version_by_its_name(history: History, text: str, number: int) -> None:
    assert find_version(history, text).number == number


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("head~2", "before the first version"),
        ("head~99999", "before the first version"),
        ("9", "no version '9'"),
        ("v0", "no version 'v0'"),
        ("vv1", "no version 'vv1'"),
        ("HEAD", "no version 'HEAD'"),
        ("head~", "no version 'head~'"),
        ("-1", "no version '-1'"),
        ("", "no version ''"),
        ("99999999999999999999", "no version"),
        ("1; drop table versions", "no version"),
    ],
)
def test_what_names_no_version_says_so_and_what_would(history: History, text: str, says: str) -> None:
    with pytest.raises(Usage, match=says) as raised:
        find_version(history, text)
    assert raised.value.hint


def test_before_the_first_fold_there_is_no_head(merge: Sandbox) -> None:
    with History(merge.store.database) as history, pytest.raises(Usage):
        find_version(history, "head")


def test_a_checkpoint_by_its_name_with_or_without_the_suffix(history: History) -> None:
    assert find_checkpoint(history, "b").name == "b"
    assert find_checkpoint(history, "d.safetensors").name == find_checkpoint(history, "d").name == "d.safetensors"


def test_a_checkpoint_by_its_path(history: History, merge: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(merge.watch)
    for path in (str(merge.watch / "c"), "./c", f"{merge.watch}/../watch/c", f"{merge.watch}/c/"):
        assert find_checkpoint(history, path).name == "c"


def test_a_checkpoint_by_six_digits_of_its_digest_or_more(history: History) -> None:
    digest = find_checkpoint(history, "a").digest or ""
    for digits in (6, 12, 64):
        assert find_checkpoint(history, digest[:digits]).name == "a"
    for text in (digest[:5], digest + "0", digest[:8].upper() + "G"):
        with pytest.raises(Usage, match="no checkpoint is called"):
            find_checkpoint(history, text)


def test_what_is_ambiguous_lists_the_matches(merge: Sandbox) -> None:
    merge.drop("b", 1)
    merge.drop("b.safetensors", 2)
    merge.fold_all()
    with History(merge.store.database) as history:
        with pytest.raises(Usage, match="names 2 checkpoints") as raised:
            find_checkpoint(history, "b")
        assert str(merge.watch / "b.safetensors") in raised.value.hint
        assert f"({merge.watch / 'b'})" in raised.value.hint
        assert find_checkpoint(history, "b.safetensors").name == "b.safetensors"


def test_of_several_contents_at_one_place_the_newest_is_meant(merge: Sandbox) -> None:
    place = merge.drop("b", 1)
    merge.fold_all()
    os.utime(place / "model.safetensors")
    rows = merge.fold_all()
    assert len(rows) == 2
    with History(merge.store.database) as history:
        assert find_checkpoint(history, "b").id == rows[-1].id


def test_a_name_is_found_whatever_it_is_made_of_and_however_many_others_there_are(
    merge: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"model-{k}" for k in range(500)] + ["100%_*?", "it's", "run/step.safetensors", 'say "x"', "é.b.c"]
    with History(merge.store.database, write=True) as history:
        with history.all_or_nothing():
            for name in names:
                history.checkpoints.add(Sighting("directory", f"{merge.watch}/{name}", name, ()))
        looked_at = Mock(side_effect=checkpoints._checkpoint)
        monkeypatch.setattr(checkpoints, "_checkpoint", looked_at)
        for text in ("100%_*?", "it's", "run/step.safetensors", "step", 'say "x"', "é.b.c", "é.b", "model-7"):
            found = find_checkpoint(history, text)
            assert text in (found.name, Path(found.name).stem)
            assert find_checkpoint(history, f"{merge.watch}/{found.name}") == found
        assert looked_at.call_count < 300  # model-7, model-70, ..: not all of them each time
        for text in ("100%", "model", "*", "", "É.b"):
            with pytest.raises(Usage, match="no checkpoint is called"):
                find_checkpoint(history, text)


def test_a_link_in_the_last_part_of_a_place_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "real" / "inner").symlink_to("/elsewhere")
    assert absolute(tmp_path / "link") == tmp_path.resolve() / "link"
    assert absolute(tmp_path / "link" / "inner") == tmp_path.resolve() / "real" / "inner"
