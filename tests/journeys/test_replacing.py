"""What replaces another checkpoint: new content at an old place, and later steps of a run; the history, the bytes, and what may stand in the way."""

import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from support.merges import Sandbox, make_merge
from support.models import Model, save_model

from mergd.state.history import History
from mergd.state.records import Move


def run(merge: Sandbox) -> None:
    """Fold all that is ready, in this process: it is done often here."""
    merge.fold_all()


def rows(merge: Sandbox) -> list[tuple[str, str]]:
    return [(row.name, row.state) for row in merge.checkpoints()]


def moves(merge: Sandbox) -> list[Move]:
    with History(merge.store.database) as history:
        return history.moves()


def save_step(merge: Sandbox, step: int, seed: int, run: str = "alpha") -> Path:
    """Write what a trainer saves at one step."""
    place = save_model(merge.watch / run / f"checkpoint-{step}", merge.fine_tuned(seed))
    (place / "trainer_state.json").write_text("{}")
    return place


def only(root: Path, *models: Model, **settings: Any) -> dict[str, str]:
    """Return the digests of the head's files of a merge that folded only these."""
    other = make_merge(root, **settings)
    for k, model in enumerate(models):
        other.drop(f"c{k}", model)
        run(other)
    return without_number(other, len(models))


def without_number(merge: Sandbox, version: int) -> dict[str, str]:
    """Return the digests of a version's weights: published ones and slots."""
    files = merge.weight_files(version)
    return {name.split("/", 2)[2]: digest for name, digest in files.items() if name.endswith(".safetensors")}


@pytest.mark.parametrize("rule", ["opcm", "average"])
def test_new_content_replaces_what_the_head_folded(tmp_path: Path, rule: str) -> None:
    merge = make_merge(tmp_path / "one", on_change="replace", rule=rule)
    for name, seed in (("a", 1), ("b", 2)):
        merge.drop(name, seed)
        run(merge)
    save_model(merge.watch / "b", merge.fine_tuned(3))
    run(merge)
    assert [(v.number, v.parent, v.totals.folded) for v in merge.versions()] == [(1, None, 1), (2, 1, 2), (3, 1, 2)]
    assert [(m.from_version, m.to_version, m.why) for m in moves(merge)] == [
        (2, 3, "replace"), (1, 2, "fold"), (None, 1, "fold")]  # fmt: skip
    assert merge.store.pointed() == 3
    expected = only(tmp_path / "other", merge.fine_tuned(1), merge.fine_tuned(3), rule=rule)
    assert without_number(merge, 3) == expected
    listed = {row["digest"]: row for row in merge.mergd("list", "--json").json}
    assert [(row["name"], row["in_model"], row["replaces"]) for row in listed.values()] == [
        ("a", True, None), ("b", False, None), ("b", True, "b")]  # fmt: skip
    assert merge.mergd("rollback", "--json").json["head"] == 2


def test_the_first_checkpoint_is_replaced_by_a_start_from_nothing(tmp_path: Path) -> None:
    merge = make_merge(tmp_path / "one", on_change="replace")
    merge.drop("a", 1)
    run(merge)
    save_model(merge.watch / "a", merge.fine_tuned(2))
    run(merge)
    assert [(v.parent, v.totals.folded) for v in merge.versions()] == [(None, 1), (None, 1)]
    assert without_number(merge, 2) == only(tmp_path / "other", merge.fine_tuned(2))
    save_model(merge.watch / "a", merge.fine_tuned(1))  # and back again
    run(merge)
    assert without_number(merge, 3) == without_number(merge, 1)


def test_what_is_only_touched_is_replaced_by_nothing(tmp_path: Path) -> None:
    merge = make_merge(tmp_path, on_change="replace")
    for name, seed in (("a", 1), ("b", 2)):
        merge.drop(name, seed)
        run(merge)
    for name in ("a", "b"):
        (merge.watch / name / "model.safetensors").touch()
    run(merge)
    assert [state for _, state in rows(merge)] == ["folded"] * 4
    assert len(merge.versions()) == 2


def test_where_others_were_folded_since_it_is_held_and_the_commands_it_names_do_it(tmp_path: Path) -> None:
    merge = make_merge(tmp_path / "one", on_change="replace")
    for name, seed in (("a", 1), ("b", 2), ("c", 3)):
        merge.drop(name, seed)
        run(merge)
    place = save_model(merge.watch / "b", merge.fine_tuned(4))
    run(merge)
    (*_, held) = merge.checkpoints()
    assert (held.name, held.state, held.reasons[0].code) == ("b", "held", "replace-later")
    assert len(merge.versions()) == 3
    one_more, otherwise, *way = held.reasons[0].next_step.split("; ")
    assert one_more.endswith(f"mergd approve {place}")
    assert f"mergd refuse {place}" in otherwise
    for command in way:
        ended = merge.mergd(*shlex.split(command.rpartition(": ")[2])[1:])
        assert ended.code == 0, ended.err
    model = [merge.fine_tuned(seed) for seed in (1, 4, 3)]
    assert without_number(merge, 5) == only(tmp_path / "other", *model)


def test_a_person_may_fold_it_as_one_more_instead(tmp_path: Path) -> None:
    merge = make_merge(tmp_path, on_change="replace")
    for name, seed in (("a", 1), ("b", 2)):
        merge.drop(name, seed)
        run(merge)
    place = save_model(merge.watch / "a", merge.fine_tuned(4))
    run(merge)
    assert merge.mergd("fold", place).code == 0
    assert merge.versions()[-1].totals.folded == 3


def test_however_often_it_is_replaced_what_it_is_folded_onto_stays(tmp_path: Path) -> None:
    merge = make_merge(tmp_path, on_change="replace", keep_last=1, keep_within=0)
    for name, seed in (("a", 1), ("b", 2), ("b", 3), ("b", 4)):
        save_model(merge.watch / name, merge.fine_tuned(seed))
        run(merge)
    assert [(v.number, v.parent, v.model_kept, v.slots_kept) for v in merge.versions()] == [
        (1, None, False, True), (2, 1, False, False), (3, 1, True, True), (4, 1, True, True)]  # fmt: skip


def test_onto_slots_that_were_dropped_nothing_is_folded(tmp_path: Path) -> None:
    merge = make_merge(tmp_path, on_change="replace")
    for name, seed in (("a", 1), ("b", 2)):
        merge.drop(name, seed)
        run(merge)
    with History(merge.store.database, write=True) as history:
        history.drop_files(1, "slots")
        history.drop_files(1, "model")
    save_model(merge.watch / "b", merge.fine_tuned(3))
    run(merge)
    (*_, held) = merge.checkpoints()
    assert (held.state, held.reasons[0].code) == ("held", "replace-later")
    assert merge.mergd("fold", merge.watch / "b").code == 0  # as one more
    assert merge.versions()[-1].totals.folded == 3


def test_each_later_step_of_a_run_replaces_the_earlier_one(tmp_path: Path) -> None:
    merge = make_merge(tmp_path / "one", per_run="replace")
    merge.drop("a", 1)
    run(merge)
    for k, step in enumerate((500, 1000, 1500)):
        save_step(merge, step, seed=10 + k)
        run(merge)
    assert [(v.parent, v.totals.folded) for v in merge.versions()] == [(None, 1), (1, 2), (1, 2), (1, 2)]
    assert without_number(merge, 4) == only(tmp_path / "other", merge.fine_tuned(1), merge.fine_tuned(12))


def test_of_a_run_the_last_step_counts_and_what_comes_later_is_held(tmp_path: Path) -> None:
    merge = make_merge(tmp_path, run_quiet=0)
    for k, step in enumerate((500, 1000)):
        save_step(merge, step, seed=10 + k)
    run(merge)
    assert rows(merge) == [("alpha/checkpoint-500", "settling"), ("alpha/checkpoint-1000", "folded")]
    assert torch.allclose(merge.published()["layer.matrix.bias"], merge.fine_tuned(11)["layer.matrix.bias"])
    later = save_step(merge, 1500, seed=12)
    run(merge)
    assert rows(merge)[-1] == ("alpha/checkpoint-1500", "held")
    assert merge.checkpoints()[-1].reasons[0].code == "run-counted"
    assert merge.mergd("fold", later).code == 0  # as one more
    assert merge.versions()[-1].totals.folded == 2


def test_a_run_whose_final_model_is_there_waits_for_nothing(tmp_path: Path) -> None:
    merge = make_merge(tmp_path, run_quiet=3600)
    save_step(merge, 500, seed=1)
    run(merge)
    assert rows(merge) == [("alpha/checkpoint-500", "settling")]
    save_model(merge.watch / "alpha", merge.fine_tuned(2))
    run(merge)
    assert rows(merge) == [("alpha/checkpoint-500", "settling"), ("alpha", "folded")]


def test_at_init_too_a_run_counts_once(tmp_path: Path) -> None:
    first = Sandbox(tmp_path, make_merge(tmp_path / "x").model)
    for step in (500, 1000):
        save_step(first, step, seed=step)
    merge = make_merge(tmp_path, existing="fold")
    assert sorted(merge.states().items()) == [
        ("alpha/checkpoint-1000", "settling"),
        ("alpha/checkpoint-500", "settling"),
    ]
