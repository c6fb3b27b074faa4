"""A database that is lost or broken is made again from the manifests alone, and the merge goes on as if nothing had been."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from support.merges import Sandbox, set_in

from mergd.daemon.progress import Progress
from mergd.daemon.rebuilding import rebuild
from mergd.state.errors import Usage
from mergd.state.history import History
from mergd.state.records import Version

SEEDS = {"a": 1, "b": 2, "c": 3}


def lived(merge: Sandbox) -> Sandbox:
    """Fold a, b and c; roll back to b; fold d; roll back to b, and put c back. The head is v5, its parent v2."""
    for name, seed in SEEDS.items():
        merge.drop(name, seed)
        merge.fold_all()
    assert merge.mergd("rollback", "v2").code == 0
    merge.drop("d", 4)
    merge.fold_all()
    assert merge.mergd("rollback", "v2").code == 0
    assert merge.mergd("fold", "--again", "c").code == 0
    return merge


@pytest.fixture
def merge(merge: Sandbox) -> Sandbox:
    return lived(merge)


def lose(merge: Sandbox) -> None:
    for path in merge.state.glob("mergd.db*"):
        path.unlink()


def what_counts(version: Version) -> tuple[object, ...]:
    """Return what of a version must come back."""
    v = version
    return (v.number, v.parent, v.cause, v.rule, v.totals, v.scale, v.digest, v.slots_kept, v.model_kept, v.stamps,
            v.checkpoint, v.gates, v.arguments, v.damaged)  # fmt: skip


def test_versions_checkpoints_and_head_are_as_they_were(merge: Sandbox) -> None:
    with History(merge.store.database) as history:
        pins, folded = history.pins(), history.checkpoints.folded_digests()
        brought = history.contributions.in_line(5, 10)
        line = [version.number for version in history.lineage(5)]
    before, states = merge.versions(), merge.states()
    lose(merge)
    answer = merge.mergd("rebuild", "--json")
    assert answer.code == 0, answer.err
    assert (answer.json["head"], answer.json["versions"], answer.json["damaged"]) == (5, 5, [])
    assert any("decisions" in text for text in answer.json["lost"])
    assert [*map(what_counts, merge.versions())] == [*map(what_counts, before)]
    assert merge.states() == states
    with History(merge.store.database) as history:
        assert history.pins() == pins
        assert history.checkpoints.folded_digests() == folded
        assert history.contributions.in_line(5, 10) == brought
        assert [version.number for version in history.lineage(5)] == line == [5, 2, 1]
    assert merge.mergd("verify").code == 0
    assert merge.mergd("rollback", "v3").code == 0


def test_it_folds_on_to_the_same_bytes_and_nothing_twice(merge: Sandbox, new_merge: Callable[..., Sandbox]) -> None:
    twin = lived(new_merge("twin"))
    lose(merge)
    assert merge.mergd("rebuild").code == 0
    for each in (merge, twin):
        each.fold_all()
        assert len(each.versions()) == 5  # what lies in the watched folder was folded, and is known
        assert each.mergd("rollback", "v4").code == 0
        for name, seed in (("e", 5), ("f", 6)):
            each.drop(name, seed)
            each.fold_all()
        assert each.mergd("fold", "--again", "c").code == 0
    assert [(v.number, v.parent, v.digest) for v in merge.versions()] == [
        (v.number, v.parent, v.digest) for v in twin.versions()
    ]
    assert len(merge.versions()) == 8


def test_a_later_checkpoint_is_judged_by_those_before(merge: Sandbox) -> None:
    lose(merge)
    assert merge.mergd("rebuild").code == 0
    copy = {n: t + 1e-4 * t if t.is_floating_point() else t for n, t in merge.fine_tuned(SEEDS["c"]).items()}
    merge.drop("copy-of-c", copy)
    row = next(row for row in merge.fold_all() if row.name == "copy-of-c")
    assert [reason.code for reason in row.reasons] == ["near-copy"]


def test_what_was_not_folded_waits_for_a_person(merge: Sandbox) -> None:
    assert merge.mergd("pause").code == 0
    merge.drop("waiting", 7)
    merge.fold_all()
    lose(merge)
    assert merge.mergd("rebuild", "--json").json["held"] == ["waiting"]
    merge.fold_all()
    assert merge.states()["waiting"] == "held"  # as init does with what lies there
    assert merge.mergd("approve", "waiting").code == 0
    merge.fold_all()
    assert merge.states()["waiting"] == "folded"


# ------------------------------------------------------------------------------------------------------ is there need


def test_a_database_that_is_well_is_left_alone(merge: Sandbox) -> None:
    before = merge.store.database.read_bytes()
    ended = merge.mergd("rebuild")
    assert ended.code == 2
    assert "opens well" in ended.err
    assert merge.store.database.read_bytes() == before
    assert merge.mergd("rebuild", "--force").code == 0
    (aside,) = (merge.state / "backups").glob("before-rebuild-*.db")
    with History(aside) as history:
        assert len(history.versions()) == 5
        assert history.moves(1)[0].why == "fold"


def test_a_broken_database_is_kept_aside(merge: Sandbox) -> None:
    data = bytearray(merge.store.database.read_bytes())
    data[100:4000] = os.urandom(3900)
    merge.store.database.write_bytes(data)
    for command in ("status", "run", "verify"):
        ended = merge.mergd(command)
        assert ended.code == 74
        assert "mergd rebuild" in ended.err
    assert merge.mergd("rebuild").code == 0
    (aside,) = (merge.state / "backups").glob("before-rebuild-*.db")
    assert aside.read_bytes() == data
    assert merge.mergd("verify").code == 0


def test_a_copy_that_knows_all_versions_is_offered_instead(merge: Sandbox) -> None:
    backups = merge.state / "backups"
    backups.mkdir()
    with History(merge.store.database, write=True) as history:
        history.tidy()
    shutil.copy(merge.store.database, backups / "mergd.db")
    lose(merge)
    with pytest.raises(Usage, match=r"backups/mergd\.db") as offered:
        rebuild(merge.settings, False, Progress())
    for command in offered.value.hint.removeprefix("to bring it back: ").split("; ")[:2]:
        assert os.system(command) == 0  # the hint does what it says
    assert merge.mergd("verify").code == 0
    assert merge.log()[0]["version"] == 5
    merge.drop("e", 5)
    merge.fold_all()
    lose(merge)
    assert merge.mergd("rebuild").code == 0  # the copy does not know v6
    assert merge.log()[0]["version"] == 6


def test_a_state_whose_database_is_gone_says_how_to_make_it_again(merge: Sandbox) -> None:
    lose(merge)
    for command in ("run", "status", "rollback"):
        ended = merge.mergd(command)
        assert ended.code == 78
        assert "mergd rebuild" in ended.err


# ------------------------------------------------------------------------------------------------- what else is broken


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_the_head_is_the_newest_version_that_is_whole(merge: Sandbox) -> None:
    merge.store.current.unlink()
    flip(merge.store.model(5) / "model.safetensors")
    lose(merge)
    answer = merge.mergd("rebuild", "--json").json
    assert answer["head"] == 4
    assert answer["damaged"] == ["v5: models/000005/model.safetensors"]
    assert merge.store.pointed() == 4


def test_a_version_whose_manifest_is_damaged_is_left_as_it_lies(merge: Sandbox) -> None:
    flip(merge.store.manifest_path(4))
    files = merge.weight_files(4)
    lose(merge)
    ended = merge.mergd("rebuild")
    assert ended.code == 0
    assert "versions/000004/manifest.json" in ended.err
    merge.fold_all()
    assert merge.weight_files(4) == files
    assert merge.states()["d"] in ("held", "ready")  # nobody knows that it was folded: a person decides
    status = merge.mergd("status", "--json").json
    assert "v4" in status["paused"]["why"]
    assert merge.mergd("rollback", "v4").code == 74


def test_another_base_model_or_rule_is_refused(merge: Sandbox) -> None:
    lose(merge)
    set_in(merge.config, rule='"average"')
    assert merge.mergd("rebuild").code == 78
    set_in(merge.config, rule='"opcm"', threads="7")
    ended = merge.mergd("rebuild")
    assert ended.code == 78
    assert "threads is 7" in ended.err
    set_in(merge.config, threads="1")
    flip(merge.base / "model.safetensors")
    assert merge.mergd("rebuild").code == 78
    assert not merge.store.database.exists()
