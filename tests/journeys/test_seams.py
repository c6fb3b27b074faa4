"""What comes of one thing done upon another: removals, replays, retention, damage, replacement and rebuilds together."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from support.merges import NO_LIMITS, Sandbox, make_merge

from mergd.daemon.requests import Remove, Replay, Rollback, Tag
from mergd.state.committing import Commit
from mergd.state.errors import MergdError, Unavailable, Usage
from mergd.state.history import History
from mergd.state.store import Store


def filled(root: Path, names: str = "abc", **settings: Any) -> Sandbox:
    """Return a merge that has folded these, in this order."""
    merge = make_merge(root, limits=NO_LIMITS, **settings)
    for name in names:
        merge.drop(name, ord(name))
    merge.fold_all()
    return merge


def dropped(merge: Sandbox, *numbers: int) -> None:
    """Let versions have lost their slots to retention."""
    with History(merge.store.database, write=True) as history:
        for number in numbers:
            Commit(merge.store, history).sweep(number, "slots")


def spoilt(merge: Sandbox, number: int) -> None:
    """Flip a bit of a version's manifest."""
    path = merge.store.versions / f"{number:06d}" / "manifest.json"
    path.chmod(0o600)
    path.write_bytes(path.read_bytes().replace(b'"parent"', b'"qarent"'))


def rebuilt(merge: Sandbox) -> Sandbox:
    """Return the merge after its database was lost, and made again."""
    for path in merge.state.glob("mergd.db*"):
        path.unlink()
    shutil.rmtree(merge.state / "backups", ignore_errors=True)
    assert merge.mergd("rebuild").code == 0
    return merge


# ----------------------------------------------------------------------------------------------------- replays, retention


def test_what_the_disk_would_not_let_go_of_and_was_made_once_more_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    merge = filled(tmp_path)
    with merge.loop() as loop:
        commit = loop._work.worker._commit
        with monkeypatch.context() as patch:
            patch.setattr(Store, "drop", lambda *arguments: os.stat("/does/not/exist"))
            commit.sweep(2, "slots")
        loop.ask(Replay(version="2"))
        commit.sweep_rest()
    assert merge.versions()[1].slots_kept
    assert merge.store.files(2, "slots")
    assert merge.mergd("verify").code == 0


def test_the_slots_that_a_replay_made_are_kept_with_its_tag(tmp_path: Path) -> None:
    merge = filled(tmp_path, "abcdef", keep_last=5, keep_within=0, keep_slots=1)
    assert not merge.versions()[2].slots_kept
    with merge.loop() as loop:
        loop.ask(Replay(version="3"))
    assert merge.versions()[2].slots_kept
    with merge.loop() as loop, pytest.raises(Usage, match="mergd calls"):
        loop.ask(Tag(name="replayed-3", version="5", force=True))
    assert merge.mergd("tag", "-d", "replayed-3").code == 0
    merge.fold_all()
    assert not merge.versions()[2].slots_kept


def test_a_head_whose_source_holds_something_else_is_not_replayed_again_and_again(tmp_path: Path) -> None:
    merge = filled(tmp_path)
    dropped(merge, 1, 2)
    (merge.watch / "a" / "model.safetensors").write_bytes((merge.watch / "c" / "model.safetensors").read_bytes())
    assert merge.mergd("rollback", "v2").code == 0
    merge.drop("z", 26)
    ended = merge.mergd("run", "--once")
    assert ended.code == 69
    assert "the source of a holds other content now" in ended.err
    with History(merge.store.database) as history:
        assert len(list(history._db.table("tasks").rows)) == 1
    with merge.loop() as loop:
        loop.post("rescan")
        loop.run(until=loop.idle)
        assert "v2" in loop.trouble
        loop.ask(Rollback(version="3"))
        loop.run(until=loop.idle)
        assert loop.trouble == ""
    assert merge.states()["z"] == "folded"


def test_a_version_is_not_replayed_to_other_side_files(tmp_path: Path) -> None:
    merge = filled(tmp_path)
    path = merge.store.model(2) / "model.safetensors"
    before = merge.weight_files(2)
    path.chmod(0o600)
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert merge.mergd("verify").code == 74
    config = merge.base / "config.json"
    text = config.read_text()
    config.write_text(text + "\n")
    with merge.loop() as loop, pytest.raises(MergdError, match=r"another config\.json"):
        loop.ask(Replay(version="2"))
    assert (merge.store.model(2) / "config.json").read_text() == text
    config.write_text(text)
    with merge.loop() as loop:
        loop.ask(Replay(version="2"))
    assert merge.weight_files(2) == before


# --------------------------------------------------------------------------------------------------------------- removals


def test_a_rollback_tells_what_a_removal_had_taken_out(tmp_path: Path) -> None:
    merge = filled(tmp_path, "abcd")
    with merge.loop() as loop:
        loop.ask(Remove(checkpoint="b"))
        there = loop.ask(Rollback(version="1"))
        again = loop.ask(Rollback(version="5"))
        past = loop.ask(Rollback(version="4"))
    assert ([item["name"] for item in there["out"]], there["back"]) == (["c", "d"], [])
    assert (again["out"], again["back"]) == ([], ["c", "d"])
    assert (past["out"], past["back"]) == ([], ["b"])


@pytest.mark.parametrize("now", [99, 1000])  # 99: the content of another one that is in the model
def test_what_lies_at_a_place_by_now_is_not_what_is_taken_out(tmp_path: Path, now: int) -> None:
    merge = filled(tmp_path / "all", on_change="hold")
    others = filled(tmp_path / "others", "bc")
    merge.remove("a")
    merge.drop("a", now)
    merge.fold_all()
    with merge.loop() as loop:
        loop.ask(Remove(checkpoint="a"))
    assert merge.versions()[-1].digest == others.versions()[-1].digest


def test_what_was_taken_out_is_not_what_new_content_replaces(tmp_path: Path) -> None:
    merge = filled(tmp_path, "a", on_change="replace")
    with merge.loop() as loop:
        loop.ask(Remove(checkpoint="a"))
    merge.remove("a")
    merge.drop("a", 99)
    merge.fold_all()
    head = merge.versions()[-1]
    assert (head.cause, head.parent, head.totals.folded) == ("fold", 2, 1)


# ----------------------------------------------------------------------------------------------------- damage and rebuilds


def test_damage_that_a_task_meets_is_put_on_the_version_that_has_it(tmp_path: Path) -> None:
    merge = filled(tmp_path, "abcd")
    path = merge.store.files(2, "slots")[0]
    path.chmod(0o600)
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with merge.loop() as loop, pytest.raises(MergdError, match="not as it was written"):
        loop.ask(Remove(checkpoint="c"))
    assert [version.number for version in merge.versions() if version.damaged] == [2]


def test_a_parents_manifest_that_cannot_be_read_only_means_that_nothing_is_linked(tmp_path: Path) -> None:
    merge = filled(tmp_path)
    with merge.loop() as loop:
        spoilt(merge, 3)
        loop.ask(Remove(checkpoint="a"))
    assert merge.versions()[-1].totals.folded == 2


@pytest.mark.parametrize("rule", ["opcm", "average"])
def test_what_nobody_knows_of_is_neither_replayed_nor_passed_over(tmp_path: Path, rule: str) -> None:
    merge = filled(tmp_path, rule=rule)
    spoilt(merge, 2)
    rebuilt(merge)
    before = {name: tensor.clone() for name, tensor in merge.published().items()}
    for words in (["remove", "c"], ["replay", "v2"], ["remove", "a"]):
        ended = merge.mergd(*words)
        assert ended.code in (2, 69), ended.err
        assert "Assertion" not in ended.err
    assert merge.mergd("fold", "--again", str(merge.watch / "a")).code != 0
    assert [entry["files"] for entry in merge.log()] == ["kept", "damaged", "kept"]
    assert all((before[name] == tensor).all() for name, tensor in merge.published().items())


def test_a_removal_is_rebuilt_though_the_manifest_of_its_fold_is_spoilt(tmp_path: Path) -> None:
    merge = filled(tmp_path)
    with merge.loop() as loop:
        loop.ask(Remove(checkpoint="b"))
    spoilt(merge, 2)
    rebuilt(merge)
    assert [version.removed is not None for version in merge.versions()] == [False, False, False, True]


def test_what_a_rebuild_finds_is_kept_until_somebody_has_looked(tmp_path: Path) -> None:
    merge = filled(tmp_path, "abcd", keep_last=1, keep_within=0)
    with merge.loop() as loop:
        loop.ask(Rollback(version="3"))
        loop.ask(Tag(name="good", version="4"))
    before = [version.number for version in merge.versions() if version.kept]
    rebuilt(merge)
    merge.fold_all()
    assert [version.number for version in merge.versions() if version.kept] == before
    assert {tag["tag"] for tag in merge.mergd("tag", "--json").json} == {f"rebuilt-{number}" for number in before}


def test_sources_are_found_after_a_rebuild(tmp_path: Path) -> None:
    merge = filled(tmp_path)
    rebuilt(merge)
    with merge.loop() as loop:
        loop.ask(Remove(checkpoint="a"))
    assert merge.versions()[-1].totals.folded == 2


def test_a_pinned_source_that_is_damaged_does_not_hide_the_one_at_its_place(tmp_path: Path) -> None:
    merge = filled(tmp_path, archive={"full": "1MB"})
    for path in (merge.state / "archive").rglob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:-1] + b"x")
    with merge.loop() as loop:
        loop.ask(Remove(checkpoint="a"))
    assert merge.versions()[-1].totals.folded == 2
    for name in "bc":
        merge.remove(name)
    with merge.loop() as loop, pytest.raises((Unavailable, MergdError), match="other content"):
        loop.ask(Remove(checkpoint="b", exact=True))
