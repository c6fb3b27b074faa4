"""Fisher merging by the command line: the tensors that are shipped beside the weights, from the drop to removals and replays."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from support.commands import eventually
from support.merges import NO_LIMITS, Sandbox, make_merge
from support.models import Model, drop_adapter, save_lone, task_vector

SHARES = {"a": 1.0, "b": 2.0, "c": 0.5}


def fisher_of(merge: Sandbox, seed: int) -> Model:
    """Return what could be a checkpoint's Fisher."""
    generator = torch.Generator().manual_seed(100 + seed)
    weights = {name: tensor for name, tensor in merge.model.items() if tensor.is_floating_point()}
    return {name: torch.rand(tensor.shape, generator=generator) + 0.01 for name, tensor in weights.items()}


def drop(merge: Sandbox, name: str, share: float = 1.0) -> Path:
    """Drop a checkpoint with its Fisher; its seed is its letter."""
    aside = merge.root / f"with-{name}"
    aside.mkdir()
    save_lone(aside / "model.safetensors", merge.fine_tuned(ord(name)))
    save_lone(aside / "fisher.safetensors", fisher_of(merge, ord(name)))
    (aside / "checkpoint.toml").write_text(f"share = {share}")
    return aside.rename(merge.watch / name)


def weighed(merge: Sandbox, names: str) -> Model:
    """Return what these checkpoints merge to: sum of share F tau over sum of share F, in float64."""
    taus = {name: task_vector(merge.fine_tuned(ord(name)), merge.model) for name in names}
    F = {name: {w: SHARES[name] * f.double() for w, f in fisher_of(merge, ord(name)).items()} for name in names}
    return {
        w: sum(F[name][w] * taus[name][w] for name in names) / sum(F[name][w] for name in names)  # type: ignore[misc]
        for w in taus[names[0]]
    }


def fishing(root: Path, **settings: Any) -> Sandbox:
    return make_merge(root, rule="fisher", limits=NO_LIMITS, trust_sidecar=True, **settings)


def once(merge: Sandbox) -> None:
    ended = merge.mergd("run", "--once")
    assert ended.code == 0, ended.err


def assert_merged(merge: Sandbox, names: str) -> None:
    found = task_vector(merge.published(), merge.model)
    for name, tensor in weighed(merge, names).items():
        torch.testing.assert_close(found[name], tensor, atol=1e-5, rtol=1e-4)


@pytest.fixture
def merged(tmp_path: Path) -> Sandbox:
    """A merge of three checkpoints with their Fishers."""
    merge = fishing(tmp_path, archive={"full": 10_000_000})
    for name, share in SHARES.items():
        drop(merge, name, share)
    once(merge)
    assert set(merge.states().values()) == {"folded"}
    return merge


def test_what_is_merged_is_weighed_by_what_was_shipped(merged: Sandbox) -> None:
    assert_merged(merged, "abc")


@pytest.mark.parametrize("how", [(), ("--exact",)])
def test_one_is_taken_out_with_what_it_shipped(merged: Sandbox, how: tuple[str, ...]) -> None:
    ended = merged.mergd("remove", "b", *how)
    assert ended.code == 0, ended.err
    assert_merged(merged, "ac")


def test_it_is_archived_and_replayed_from_there(merged: Sandbox) -> None:
    for name in SHARES:
        merged.remove(name)
    for number in (1, 2, 3):
        replayed = merged.mergd("verify", "--replay", f"v{number}")
        assert replayed.code == 0, replayed.err
    assert merged.mergd("remove", "a").code == 0
    assert_merged(merged, "bc")


def test_another_fisher_of_the_same_weights_is_other_content(merged: Sandbox) -> None:
    (merged.watch / "a" / "checkpoint.toml").write_text("# touched")
    once(merged)
    assert len(merged.versions()) == 3
    save_lone(merged.watch / "a" / "fisher.safetensors", fisher_of(merged, 7))
    once(merged)
    assert [row.state for row in merged.checkpoints()] == ["folded", "folded", "folded", "held"]
    assert merged.checkpoints()[-1].reasons[0].code == "changed"


def test_without_it_a_checkpoint_is_refused_and_folded_once_it_is_there(tmp_path: Path) -> None:
    merge = fishing(tmp_path)
    place = merge.drop("a", ord("a"))
    lone = merge.drop("lone.safetensors", 3)
    for path in (place, lone):
        checked = merge.mergd("check", "--json", path).json
        assert (checked["decision"], checked["reasons"][0]["code"]) == ("refused", "needs-fisher")
    once(merge)
    assert merge.states() == {"a": "refused", "lone.safetensors": "refused"}
    save_lone(place / "fisher.safetensors", fisher_of(merge, ord("a")))
    assert merge.mergd("check", "--deep", "--json", place).json["decision"] == "admitted"
    once(merge)
    assert merge.states()["a"] == "folded"
    assert_merged(merge, "a")


def test_numbers_that_it_cannot_have_are_refused_by_content(tmp_path: Path) -> None:
    merge = fishing(tmp_path)
    place = drop(merge, "a")
    fisher = fisher_of(merge, 1)
    fisher["layer.matrix.bias"][2] = -1.0
    save_lone(place / "fisher.safetensors", fisher)
    assert merge.mergd("check", "--deep", "--json", place).json["decision"] == "refused"
    once(merge)
    (row,) = merge.checkpoints()
    assert (row.state, row.reasons[0].code) == ("refused", "needs-fisher")
    assert "below 0" in row.reasons[0].found
    assert merge.versions() == []


def test_a_copy_that_stalls_in_it_is_waited_for(tmp_path: Path) -> None:
    merge = fishing(tmp_path)
    whole = save_lone(tmp_path / "whole.safetensors", fisher_of(merge, ord("a")))
    place = merge.drop("a", ord("a"))
    (place / "fisher.safetensors").write_bytes(whole.read_bytes()[:-50])
    with merge.running("run"):
        eventually(lambda: "missing" in merge.mergd("list").out)
        assert merge.states() == {"a": "settling"}
        os.replace(whole, place / "fisher.safetensors")
        eventually(lambda: merge.store.current.exists())  # which follows what the history says
    assert merge.states() == {"a": "folded"}
    assert_merged(merge, "a")


def test_adapters_and_full_models_come_in_one_stream(tmp_path: Path) -> None:
    merge = fishing(tmp_path)
    drop(merge, "a")
    place = drop_adapter(merge.watch / "adapter")
    F = fisher_of(merge, 1)["layer.matrix.weight"]
    save_lone(place / "fisher.safetensors", {"layer.matrix.weight": F})
    once(merge)
    assert set(merge.states().values()) == {"folded"}
    assert merge.mergd("remove", "adapter").code == 0
    assert_merged(merge, "a")


def test_a_merge_anew_by_a_rule_that_needs_none_and_back(merged: Sandbox) -> None:
    plain = merged.mergd("remerge", "--rule", "average")
    assert plain.code == 0, plain.err
    taus = {name: task_vector(merged.fine_tuned(ord(name)), merged.model) for name in SHARES}
    found = task_vector(merged.published(), merged.model)["layer.matrix.weight"]
    mean = sum(SHARES[name] * taus[name]["layer.matrix.weight"] for name in SHARES) / 3.5
    torch.testing.assert_close(found, mean, atol=1e-5, rtol=1e-4)
    without = merged.drop("d", 4)
    assert merged.mergd("check", "--json", without).json["decision"] == "admitted"
    assert merged.mergd("check", "--json", "--deep", without).json["decision"] == "admitted"
    back = merged.mergd("remerge", "--rule", "fisher")
    assert back.code == 0, back.err
    assert_merged(merged, "abc")
    assert merged.mergd("check", "--json", without).json["decision"] == "refused"
