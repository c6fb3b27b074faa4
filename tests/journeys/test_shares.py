"""What a checkpoint counts, from its sidecar to the version: folds, removals, replays and rebuilds by the command line."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from support.commands import eventually
from support.merges import NO_LIMITS, Sandbox, make_merge, set_in
from support.models import drop_adapter, task_vector

RULES = {"a sum": "average", "a recurrence": "opcm"}


def told(merge: Sandbox, name: str, model: int, text: str) -> Path:
    """Drop a checkpoint whose sidecar says this."""
    place = merge.drop(name, model)
    (place / "checkpoint.toml").write_text(text)
    return place


def trusting(root: Path, **settings: Any) -> Sandbox:
    return make_merge(root, limits=NO_LIMITS, trust_sidecar=True, **settings)


def once(merge: Sandbox, code: int = 0) -> None:
    ended = merge.mergd("run", "--once")
    assert ended.code == code, ended.err


def shares(merge: Sandbox) -> list[float]:
    """Return the sum of shares of each version, oldest first."""
    return [entry["totals"]["shares"] for entry in reversed(merge.log())]


def assert_same(one: Sandbox, other: Sandbox) -> None:
    found, expected = one.published(), other.published()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, atol=2e-6, rtol=1e-5)


def test_an_average_is_weighted_by_what_the_sidecars_say(tmp_path: Path) -> None:
    merge = trusting(tmp_path, rule="average")
    told(merge, "a", 1, "weight = 3.0")
    told(merge, "b", 2, "share = 1.0")
    once(merge)
    one, other = (task_vector(merge.fine_tuned(seed), merge.model) for seed in (1, 2))
    for name, tau in task_vector(merge.published(), merge.model).items():
        torch.testing.assert_close(tau, (3 * one[name] + other[name]) / 4, atol=1e-5, rtol=1e-4)
    (last, first) = merge.log()
    assert [first["share"], last["share"]] == [3.0, 1.0]
    assert (last["totals"]["folded"], last["totals"]["shares"]) == (2, 4.0)


@pytest.mark.parametrize("rule", RULES)
def test_a_share_of_two_is_that_of_folding_twice(tmp_path: Path, rule: str) -> None:
    merge = trusting(tmp_path / "two", rule=RULES[rule])
    told(merge, "a", 1, "share = 2.0")
    merge.drop("b", 2)
    once(merge)
    twice = make_merge(tmp_path / "twice", rule=RULES[rule], limits=NO_LIMITS)
    one = twice.fine_tuned(1)
    for name, model in (
        ("a", one),
        ("a2", one | {"position_ids": one["position_ids"] + 1}),
        ("b", twice.fine_tuned(2)),
    ):
        twice.drop(name, model)  # another content by what is not folded, or it would be a no-op
    once(twice)
    assert [m.versions()[-1].totals.folded for m in (merge, twice)] == [2, 3]
    assert shares(merge)[-1] == shares(twice)[-1] == 3.0
    assert_same(merge, twice)


def test_the_setting_counts_where_nothing_else_is_said(tmp_path: Path) -> None:
    merge = make_merge(tmp_path, rule="average", share=2.5, limits=NO_LIMITS)
    told(merge, "a", 1, "share = 9.0")  # not trusted
    once(merge)
    set_in(merge.config, share="1.0", trust_sidecar="true")
    told(merge, "b", 2, "share = 4.0")
    merge.drop("c", 3)
    once(merge)
    assert [entry["share"] for entry in reversed(merge.log())] == [2.5, 4.0, 1.0]


def test_people_are_told_what_a_checkpoint_counts(tmp_path: Path) -> None:
    merge = trusting(tmp_path, rule="average")
    place = told(merge, "a", 1, "share = 2.5")
    checked = merge.mergd("check", place)
    assert checked.out == "it would be admitted, and count 2.5\n"
    for deep in ((), ("--deep",)):
        assert merge.mergd("check", "--json", place, *deep).json["share"] == 2.5
    merge.drop("b", 2)
    once(merge)
    log = merge.mergd("log").out.splitlines()
    assert ["counts 2.5" in line for line in log] == [False, True]
    assert "counts" not in log[0]
    for what in ("v1", "a"):
        assert "share: 2.5" in merge.mergd("show", what).out
        assert merge.mergd("show", "--json", what).json["share"] == 2.5


# ------------------------------------------------------------------------------------------------ what nobody understands


def test_what_nobody_understands_is_held_and_approved_counts_what_the_settings_say(tmp_path: Path) -> None:
    merge = trusting(tmp_path, rule="average", share=1.5)
    place = told(merge, "a", 1, "share = 'much'")
    assert merge.mergd("check", "--json", place).json["decision"] == "held"
    once(merge)
    (row,) = merge.mergd("list", "--json").json
    assert (row["state"], [reason["code"] for reason in row["reasons"]]) == ("held", ["sidecar"])
    assert "a share that is no number" in row["reasons"][0]["found"]
    assert merge.mergd("approve", "a").code == 0
    once(merge)
    assert [entry["share"] for entry in merge.log()] == [1.5]


def test_corrected_it_is_folded(tmp_path: Path) -> None:
    merge = trusting(tmp_path, rule="average")
    told(merge, "a", 1, "share = -1")
    once(merge)
    (merge.watch / "a" / "checkpoint.toml").write_text("share = 2")
    once(merge)
    assert shares(merge) == [2.0]


def test_an_adapter_with_a_pipe_for_its_sidecar_is_folded_where_it_is_not_trusted(tmp_path: Path) -> None:
    merge = make_merge(tmp_path, limits=NO_LIMITS)
    os.mkfifo(drop_adapter(merge.watch / "a") / "checkpoint.toml")
    once(merge)
    assert merge.states() == {"a": "folded"}  # and what was archived of it is what can be read
    (archived,) = (merge.state / "archive").glob("*/a")
    assert sorted(path.name for path in archived.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]


def test_a_sidecar_that_comes_while_it_settles_is_waited_for_and_counts(tmp_path: Path) -> None:
    merge = trusting(tmp_path, rule="average", quiet=3600.0)
    place = merge.drop("a", 1)
    with merge.running("run"):
        eventually(lambda: merge.states() == {"a": "settling"})
        before = merge.checkpoints()[0].fingerprint
        (place / "checkpoint.toml").write_text("share = 2.0")
        eventually(lambda: merge.checkpoints()[0].fingerprint != before)
        (place / "READY").touch()
        eventually(lambda: merge.states() == {"a": "folded"})
    assert shares(merge) == [2.0]


@pytest.mark.parametrize("trusted", [True, False])
def test_another_sidecar_for_the_same_content_changes_nothing(tmp_path: Path, trusted: bool) -> None:
    merge = make_merge(tmp_path, rule="average", limits=NO_LIMITS, trust_sidecar=trusted)
    told(merge, "a", 1, "share = 2.0")
    once(merge)
    (merge.watch / "a" / "checkpoint.toml").write_text("share = 5.0 # now")
    once(merge)
    assert [row.state for row in merge.checkpoints()] == ["folded", "folded"]
    assert shares(merge) == [2.0 if trusted else 1.0]


# ----------------------------------------------------------------------------- what was recorded counts, not what is now


def three(root: Path, rule: str) -> Sandbox:
    """Return a merge of three checkpoints that counted 2, 0.5 and 3, whose settings and sidecars say otherwise by now."""
    merge = trusting(root, rule=rule)
    for name, seed, share in (("a", 1, 2.0), ("b", 2, 0.5), ("c", 3, 3.0)):
        told(merge, name, seed, f"share = {share}")
    once(merge)
    set_in(merge.config, trust_sidecar="false", share="7.0")
    return merge


@pytest.mark.parametrize("how", [(), ("--exact",)])
@pytest.mark.parametrize("rule", RULES)
def test_a_removal_takes_out_what_was_folded(tmp_path: Path, rule: str, how: tuple[str, ...]) -> None:
    merge = three(tmp_path / "three", RULES[rule])
    others = trusting(tmp_path / "others", rule=RULES[rule])
    told(others, "b", 2, "share = 0.5")
    told(others, "c", 3, "share = 3.0")
    once(others)
    ended = merge.mergd("remove", "a", *how)
    assert ended.code == 0, ended.err
    assert shares(merge)[-1] == pytest.approx(3.5)
    assert_same(merge, others)
    replayed = merge.mergd("verify", "--replay", f"v{merge.versions()[-1].number}")
    assert replayed.code == 0, replayed.err


@pytest.mark.parametrize("rule", RULES)
def test_a_replay_and_a_rebuild_repeat_what_was_folded(tmp_path: Path, rule: str) -> None:
    merge = three(tmp_path, RULES[rule])
    assert merge.mergd("remove", "b").code == 0
    merge.store.database.unlink()
    rebuilt = merge.mergd("rebuild", "--force")
    assert rebuilt.code == 0, rebuilt.err
    for number in range(1, 5):
        replayed = merge.mergd("verify", "--replay", f"v{number}")
        assert replayed.code == 0, replayed.err
    assert [entry["share"] for entry in merge.log()][1:] == [3.0, 0.5, 2.0]
    assert merge.mergd("remove", "c").code == 0
    assert shares(merge)[-1] == pytest.approx(2.0)


def test_one_that_was_folded_again_counts_what_it_counts_now(tmp_path: Path) -> None:
    merge = three(tmp_path, "average")
    assert merge.mergd("rollback", "v2").code == 0
    assert merge.mergd("fold", "--again", merge.watch / "c").code == 0
    assert shares(merge)[-1] == 9.5
    assert merge.mergd("remove", "c").code == 0
    assert shares(merge)[-1] == pytest.approx(2.5)
    assert merge.mergd("rollback", "v3").code == 0  # where it counts 3
    assert merge.mergd("remove", "c").code == 0
    assert shares(merge)[-1] == pytest.approx(2.5)
