"""Reading what is kept out otherwise, and merging anew: versions like any other, through rollbacks, replays and rebuilds."""

import shutil
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from references import consensus_ta
from references.interface import Checkpoints
from support.merges import NO_LIMITS, Sandbox, make_merge
from support.models import MATRICES, Model, task_vector

from mergd.daemon.forming import Forming
from mergd.daemon.requests import Fold, Publish, Remerge, Remove, Replay, Rollback
from mergd.state.errors import Unavailable, Usage
from mergd.state.history import History

NAMES = "abcd"


def filled(root: Path, names: str = NAMES, **settings: Any) -> Sandbox:
    """Return a merge that has folded these, in this order."""
    merge = make_merge(root, limits=NO_LIMITS, **settings)
    for name in names:
        merge.drop(name, ord(name))
    merge.fold_all()
    return merge


def ask(merge: Sandbox, *requests: Any) -> list[dict[str, Any]]:
    with merge.loop() as loop:
        return [loop.ask(request) for request in requests]


def merged(merge: Sandbox, version: int | None = None) -> Model:
    """Return the published task vector."""
    return task_vector(merge.published(version), merge.model)


def same(one: Model, other: Model, factor: float = 1.0) -> bool:
    return all(torch.allclose(one[name], factor * other[name], atol=1e-6, rtol=1e-4) for name in one)


def in_model(merge: Sandbox) -> set[str]:
    return {row["name"] for row in merge.mergd("list", "--json").json if row["in_model"]}


# ------------------------------------------------------------------------------------------------------------- reading


def test_another_rule_reads_what_is_kept_without_a_fold(tmp_path: Path) -> None:
    merge = filled(tmp_path, rule="average")
    ended = merge.mergd("publish", "--rule", "task_arithmetic", "--set", "lambda=0.5")
    assert ended.code == 0, ended.err
    head = merge.versions()[-1]
    assert (head.number, head.parent, head.cause, head.rule) == (5, 4, "read-out", "task_arithmetic")
    assert (head.scale, head.totals.folded) == (0.5, 4)
    assert same(merged(merge), merged(merge, 4), 0.5 * 4)
    assert in_model(merge) == set(NAMES)
    assert merge.mergd("verify").code == 0
    assert "read out by task_arithmetic" in merge.mergd("log").out


def test_the_next_checkpoints_are_folded_onto_it_and_read_so_too(tmp_path: Path) -> None:
    merge = filled(tmp_path, rule="average")
    ask(merge, Publish(rule="task_arithmetic"))
    merge.drop("e", 5)
    merge.fold_all()
    plain = filled(tmp_path / "plain", rule="task_arithmetic")
    plain.drop("e", 5)
    plain.fold_all()
    assert merge.versions()[-1].rule == "task_arithmetic"
    assert merge.versions()[-1].scale == plain.versions()[-1].scale
    assert (
        merge.weight_files(6)["models/000006/model.safetensors"]
        == plain.weight_files(5)["models/000005/model.safetensors"]
    )
    ask(merge, Rollback(version="v4"))
    merge.drop("f", 6)
    merge.fold_all()
    assert merge.versions()[-1].rule == "average"  # as its parent was


def test_only_what_is_kept_can_be_read(tmp_path: Path) -> None:
    merge = filled(tmp_path)  # opcm keeps no sum of the matrices
    with pytest.raises(Usage, match=r"not kept of 3 of 5 weights.*layer\.matrix\.weight"):
        ask(merge, Publish(rule="average"))
    with pytest.raises(Usage, match="all task vectors at once"):
        ask(merge, Publish(rule="pcb"))
    assert len(merge.versions()) == len(NAMES)
    more = filled(tmp_path / "more", also_keep=("average",))
    ask(more, Publish(rule="average"))
    assert same(merged(more), merged(filled(tmp_path / "average", rule="average")))
    ask(more, Publish(rule="opcm"))
    assert (
        more.weight_files(6)["models/000006/model.safetensors"]
        == more.weight_files(4)["models/000004/model.safetensors"]
    )


def test_a_rule_that_reads_less_than_it_did_leaves_what_is_kept(tmp_path: Path) -> None:
    merge = filled(tmp_path, rule="wudi")
    ask(merge, Publish(parameters={"solver": "ridge"}), Publish(parameters={"solver": "adam"}))
    _, ridge, adam = merge.versions()[-3:]
    assert dict(ridge.method["also"]) == {"wudi": {**ridge.method["parameters"], "solver": "adam"}}
    assert not adam.method  # as init pinned it
    assert merge.weight_files(6) and same(merged(merge, 6), merged(merge, 4))


def test_parameters_that_a_rule_got_since_are_no_damage(tmp_path: Path) -> None:
    merge = filled(tmp_path, "a")
    with History(merge.store.database, write=True) as history:  # as a mergd pinned it whose opcm had no others
        parameters = dict(history.pins()["parameters"])
        assert parameters.pop("others")
        history.pin({"parameters": parameters})
    merge.drop("b", 2)
    merge.fold_all()
    assert merge.mergd("verify").code == 0


@pytest.mark.parametrize("text", ["nan", "inf", "much"])
def test_a_scale_that_is_no_number_is_said_to_be_none(tmp_path: Path, text: str) -> None:
    ended = filled(tmp_path, "a").mergd("publish", "--scale", text)
    assert (ended.code, "is no scale" in ended.err) == (2, True)


def test_a_fold_rule_holds_one_task_vector_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    merge, made, most = filled(tmp_path, rule="average"), list[weakref.ref[Any]](), [0]
    form = Forming._difference

    def counted(*arguments: Any) -> Any:
        delta = form(*arguments)
        made.append(weakref.ref(delta))
        most[0] = max(most[0], sum(one() is not None for one in made))
        return delta

    monkeypatch.setattr(Forming, "_difference", counted)
    ask(merge, Remerge(rule="task_arithmetic"))
    assert len(made) >= len(NAMES)
    assert most[0] <= 2 < len(NAMES)


@pytest.mark.parametrize(
    ("asked", "scale"), [({"scale": 0.25}, 0.25), ({"scale": "mean-norm"}, None), ({"lines": {"alpha": 0.5}}, 0.25)]
)
def test_the_scale_is_a_reading_of_its_own(tmp_path: Path, asked: dict[str, Any], scale: float | None) -> None:
    merge = filled(tmp_path, rule="average")
    ask(merge, Publish(**asked))
    head = merge.versions()[-1]
    if scale is not None:
        assert head.scale == scale
    else:
        assert head.scale * head.totals.readout_norm == pytest.approx(head.totals.mean_norm)
    assert same(merged(merge), merged(merge, 4), 0.5 if "lines" in asked else head.scale * 4)
    with pytest.raises(Usage, match="so already"):
        ask(merge, Publish(**asked))


def test_a_dropped_read_out_is_replayed_and_nothing_is_said_of_what_is_only_planned(tmp_path: Path) -> None:
    merge = filled(tmp_path, rule="average", keep_last=1, keep_within=0)
    planned = merge.mergd("publish", "--rule", "task_arithmetic", "-n", "--json").json
    assert (planned["planned"], planned["how"]) == (True, "read-out")
    assert len(merge.versions()) == 4
    ask(merge, Publish(rule="task_arithmetic"))
    merge.drop("e", 5)
    merge.fold_all()
    ask(merge, Publish(scale=0.5))  # the last move that a person made keeps both of its ends
    merge.drop("f", 6)
    merge.fold_all()
    assert not merge.versions()[4].model_kept
    ask(merge, Replay(version="v5"))
    assert merge.versions()[4].kept
    assert merge.mergd("verify", "--replay").code == 0


def test_a_checkpoint_is_removed_after_another_rule_reads(tmp_path: Path) -> None:
    merge = filled(tmp_path, rule="average")
    ask(merge, Publish(rule="task_arithmetic"), Remove(checkpoint="b"))
    expected = filled(tmp_path / "others", "acd", rule="task_arithmetic")
    assert same(merged(merge), merged(expected))
    ask(merge, Remove(checkpoint="a", exact=True))
    assert same(merged(merge), merged(filled(tmp_path / "cd", "cd", rule="task_arithmetic")))


# ---------------------------------------------------------------------------------------------------- merging anew


def test_a_re_merge_by_a_fold_rule_is_as_if_all_had_been_folded_by_it(tmp_path: Path) -> None:
    merge, other = filled(tmp_path, rule="average"), filled(tmp_path / "other")
    ended = merge.mergd("remerge", "--rule", "opcm")
    assert ended.code == 0, ended.err
    head, expected = merge.versions()[-1], other.versions()[-1]
    assert (head.cause, head.rule, head.totals) == ("re-merge", "opcm", expected.totals)
    assert (
        merge.weight_files(5)["models/000005/model.safetensors"]
        == other.weight_files(4)["models/000004/model.safetensors"]
    )
    for one in (merge, other):
        one.drop("e", 5)
        one.fold_all()
    assert torch.equal(merge.published()[MATRICES[0]], other.published()[MATRICES[0]])
    assert merge.mergd("verify", "--replay").code == 0
    assert in_model(merge) == {*NAMES, "e"}


def test_a_batch_rule_reads_all_at_once_and_the_next_fold_goes_on_as_before(tmp_path: Path) -> None:
    merge = filled(tmp_path, rule="average")
    ended = merge.mergd("remerge", "--rule", "consensus_ta", "--set", "lambda=0.5")
    assert (ended.code, "the next checkpoint is folded and read by average" in ended.out) == (0, True)
    taus = [task_vector(merge.fine_tuned(ord(name)), merge.model) for name in NAMES]
    given = Checkpoints(taus, dict.fromkeys(taus[0], "other"))
    assert same(merged(merge), consensus_ta.merge(given, lambda_=0.5))
    head = merge.versions()[-1]
    assert (head.rule, head.cause, head.totals.folded) == ("consensus_ta", "re-merge", 4)
    merge.drop("e", 5)
    merge.fold_all()
    assert merge.versions()[-1].rule == "average"
    plain = filled(tmp_path / "plain", rule="average")
    plain.drop("e", 5)
    plain.fold_all()
    assert torch.equal(merge.published()[MATRICES[0]], plain.published()[MATRICES[0]])
    assert merge.mergd("verify", "v5", "--replay").code == 0
    assert merge.mergd("export", "v5", tmp_path / "out", "--lora", "4").code == 0


def test_what_is_gone_from_its_source_is_left_out_and_named(tmp_path: Path) -> None:
    merge = filled(tmp_path)
    merge.remove("b")
    ended = merge.mergd("remerge", "--rule", "average")
    assert (ended.code, "left out" in ended.out) == (0, True)
    assert same(merged(merge), merged(filled(tmp_path / "others", "acd", rule="average")))
    assert in_model(merge) == {"a", "c", "d"}
    ask(merge, Remove(checkpoint="c"))
    assert in_model(merge) == {"a", "d"}
    merge.drop("b", ord("b"))
    ask(merge, Fold(checkpoints=(str(merge.watch / "b"),), again=True))
    assert in_model(merge) == {"a", "d", "b"}
    for name in "abd":
        merge.remove(name)
    with pytest.raises(Unavailable, match="no checkpoint"):
        ask(merge, Remerge(rule="average"))


def test_a_rollback_leads_back_over_a_re_merge(tmp_path: Path) -> None:
    merge = filled(tmp_path, rule="average")
    merge.remove("b")
    ask(merge, Remerge(rule="opcm"), Rollback(version="v4"))
    assert in_model(merge) == set(NAMES)
    assert same(merged(merge), merged(merge, 4))
    ask(merge, Rollback(version="v5"))
    assert in_model(merge) == {"a", "c", "d"}


def test_the_database_is_made_again_with_every_cause(tmp_path: Path) -> None:
    merge = filled(tmp_path, rule="average")
    ask(merge, Publish(rule="task_arithmetic"), Remerge(rule="opcm"), Remerge(rule="consensus_ta"))
    told = [(v.number, v.cause, v.rule, v.method, v.arguments, v.digest) for v in merge.versions()]
    merge.store.database.unlink()
    for path in merge.state.glob("mergd.db-*"):
        path.unlink()
    ended = merge.mergd("rebuild")
    assert ended.code == 0, ended.err
    assert [(v.number, v.cause, v.rule, v.method, v.arguments, v.digest) for v in merge.versions()] == told
    assert in_model(merge) == set(NAMES)
    merge.drop("e", 5)
    merge.fold_all()
    assert merge.versions()[-1].rule == "opcm"


def test_a_source_that_holds_other_content_now_ends_a_re_merge(tmp_path: Path) -> None:
    merge = filled(tmp_path)
    shutil.rmtree(merge.watch / "b")
    merge.drop("b", 99)
    ended = merge.mergd("remerge", "--rule", "average")
    assert ended.code != 0
    assert "other content" in ended.err
    assert f"mergd remove {merge.checkpoints()[1].digest} --exact" in ended.err
    assert len(merge.versions()) == len(NAMES)
    with History(merge.store.database) as history:
        assert not history.tasks.waiting()
    (digest,) = {row.digest for row in merge.checkpoints() if row.name == "b" and row.state == "folded"}
    assert merge.mergd("remove", digest, "--exact").code == 0
    assert merge.mergd("remerge", "--rule", "average").code == 0
    assert same(merged(merge), merged(filled(tmp_path / "others", "acd", rule="average")))
