"""Linking: weights that no checkpoint touched are one file for all versions that agree on which they are."""

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from support.adapters import llama, save_adapter, save_base, weights_of
from support.merges import NO_LIMITS, Sandbox, make_merge, writable
from support.models import CONFIG, Model, drop_adapter, load_model, save_lone, save_model, tiny_base
from transformers import LlamaForCausalLM

from mergd.daemon.cards import WORDS
from mergd.daemon.publishing import version_bytes
from mergd.state.store import PUBLIC_FILE

TOUCHED, UNTOUCHED = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
TABLE = "embed_tokens.weight"
STREAM = (2, 3, 4)  # the ranks of three adapters of one matrix; the names of their checkpoints


def large_base(dtype: torch.dtype = torch.float32) -> Model:
    """Return the tiny base model with a lookup table of 2 MiB."""
    table = torch.randn(1024, 512, generator=torch.Generator().manual_seed(1))
    return tiny_base(dtype=dtype) | {TABLE: table.to(dtype)}


def adapters(root: Path, *arguments: Any, ranks: tuple[int, ...] = STREAM, **settings: Any) -> Sandbox:
    """Return a merge into which adapters of the square matrix were folded, one after another."""
    first = arguments[0] if arguments else large_base()
    merge = make_merge(root, first, *arguments[1:], limits=NO_LIMITS, **settings)
    for r in ranks:
        fold_adapter(merge, r)
    return merge


def fold_adapter(merge: Sandbox, r: int) -> None:
    drop_adapter(merge.watch / str(r), r)
    fold(merge, str(r))


def fold(merge: Sandbox, name: str, model: Model | None = None) -> None:
    if model is not None:
        merge.drop(name, model)
    merge.fold_all()
    assert merge.states()[name] == "folded"


def inode(merge: Sandbox, version: int, name: str = UNTOUCHED) -> int:
    return (merge.store.model(version) / name).stat().st_ino


def disk(*folders: Path) -> int:
    """Return the bytes that folders take on disk, each inode counted once."""
    found = {status.st_ino: status.st_blocks * 512 for f in folders for status in map(os.stat, f.iterdir())}
    return sum(found.values())


# ------------------------------------------------------------------------------------------------- a stream of adapters


def test_untouched_weights_are_one_file_for_a_whole_stream_of_adapters(tmp_path: Path) -> None:
    merge = adapters(tmp_path)
    assert len({inode(merge, version) for version in (1, 2, 3)}) == 1
    assert len({inode(merge, version, TOUCHED) for version in (1, 2, 3)}) == 3
    assert load_model(merge.store.model(3)).keys() == merge.model.keys()
    assert [merge.store.manifest(version)["untouched"] for version in (1, 2, 3)] == [[UNTOUCHED]] * 3
    assert merge.mergd("verify").code == 0


def test_a_version_takes_the_disk_of_what_was_touched(tmp_path: Path) -> None:
    merge = adapters(tmp_path)
    models = [merge.store.model(version) for version in (1, 2, 3)]
    assert disk(models[0]) > 2 * 2**20
    assert disk(*models[:2]) - disk(models[0]) < 64 * 1024
    assert disk(*models) - disk(*models[:2]) < 64 * 1024
    everything = [path for path in merge.state.rglob("*") if path.is_file() and not path.is_symlink()]
    assert merge.store.used([1, 2, 3]) == sum({p.stat().st_ino: p.stat().st_blocks * 512 for p in everything}.values())


def test_slots_of_untouched_weights_take_no_disk(tmp_path: Path) -> None:
    """Neither as two factors, of which there are none, nor whole, which are holes in the file."""
    for rule, whole in (("opcm", False), ("ties", True)):
        merge = adapters(tmp_path / rule, rule=rule)
        for version in (1, 2, 3):
            slots = merge.state / "versions" / f"{version:06d}"
            assert (sum(path.stat().st_size for path in slots.iterdir()) > 2 * 2**20) == whole
            assert disk(slots) < (256 if whole else 64) * 1024


def test_what_is_linked_has_the_bytes_that_would_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    linked = adapters(tmp_path / "linked")

    def no_links(*arguments: object, **options: object) -> None:
        raise OSError(errno.EPERM, "this file system has no links")

    monkeypatch.setattr(os, "link", no_links)
    written = adapters(tmp_path / "written")
    for version in (1, 2, 3):
        assert linked.weight_files(version).items() >= {
            (name, digest) for name, digest in written.weight_files(version).items() if "manifest" not in name
        }
    assert [v.digest for v in linked.versions()] == [v.digest for v in written.versions()]
    assert len({inode(written, version) for version in (1, 2, 3)}) == 3


def test_bytes_written_are_those_that_were_not_linked(tmp_path: Path) -> None:
    merge = adapters(tmp_path)
    first, second, _ = merge.versions()
    assert first.bytes_written - second.bytes_written == (merge.store.model(1) / UNTOUCHED).stat().st_size
    with merge.loop() as loop:
        base, method = loop._merge.base, loop._merge.method
    assert all(
        v.bytes_written <= version_bytes(base, method, "base", copy_code=False) + 8192 for v in merge.versions()
    )  # headers


def test_nothing_changes_a_file_that_others_link(tmp_path: Path) -> None:
    merge = adapters(tmp_path)
    assert merge.mergd("rollback", "v1").code == 0
    assert merge.mergd("resume").code == 0
    fold_adapter(merge, 5)
    for version in merge.versions():
        assert merge.store.stamps(version.number) == version.stamps
        modes = {path.stat().st_mode & 0o777 for path in merge.store.model(version.number).iterdir()}
        assert modes == {PUBLIC_FILE}


def test_after_a_rollback_files_are_linked_from_the_version_rolled_back_to(tmp_path: Path) -> None:
    merge = adapters(tmp_path, ranks=(2,))
    fold(merge, "full", merge.fine_tuned(1))
    assert merge.mergd("rollback", "v1").code == 0
    assert merge.mergd("resume").code == 0
    fold_adapter(merge, 3)
    assert inode(merge, 3) == inode(merge, 1)
    assert torch.equal(merge.published(3)[TABLE], merge.model[TABLE])


def test_a_full_fine_tune_touches_all_and_links_no_weights(tmp_path: Path) -> None:
    merge = adapters(tmp_path, ranks=(2,))
    fold(merge, "full", merge.fine_tuned(1))
    fold_adapter(merge, 3)
    assert merge.store.manifest(2)["untouched"] == merge.store.manifest(3)["untouched"] == []
    for version in (2, 3):
        (file,) = merge.store.model(version).glob("*.safetensors")
        assert (file.name, file.stat().st_nlink) == ("model.safetensors", 1)
    assert not torch.equal(merge.published(3)[TABLE], merge.model[TABLE])


def test_another_set_of_untouched_weights_is_another_file(tmp_path: Path) -> None:
    merge = adapters(tmp_path, ranks=(2,))
    fold(merge, "bias", merge.model | {"layer.matrix.bias": merge.model["layer.matrix.bias"] + 0.1})
    fold_adapter(merge, 3)
    assert inode(merge, 2) != inode(merge, 1)
    assert inode(merge, 3) == inode(merge, 2)
    assert merge.published(3).keys() == merge.model.keys()


def test_retention_leaves_the_newer_version_whole(tmp_path: Path) -> None:
    merge = adapters(tmp_path, ranks=(2, 3, 4, 5), keep_last=1, keep_within=0)
    assert not merge.store.model(1).exists()
    assert not merge.store.model(2).exists()
    assert merge.store.damaged(3) == merge.store.damaged(4) == []
    assert (merge.store.model(4) / UNTOUCHED).stat().st_nlink == 2  # this version's and the one before's


@pytest.mark.parametrize("shard_size", [1, 600, 3 * 2**20])
def test_every_shard_of_untouched_weights_is_linked(tmp_path: Path, shard_size: int) -> None:
    merge = adapters(tmp_path, ranks=(2, 3), shard_size=shard_size)
    untouched = merge.store.manifest(2)["untouched"]
    held = json.loads((merge.store.current / "model.safetensors.index.json").read_text())["weight_map"]
    assert {name for name in held if held[name] in untouched} == merge.model.keys() - {"layer.matrix.weight"}
    assert all(inode(merge, 1, name) == inode(merge, 2, name) for name in untouched)
    assert merge.published().keys() == merge.model.keys() == held.keys()


def test_few_untouched_bytes_are_not_worth_a_file(tmp_path: Path) -> None:
    merge = adapters(tmp_path, tiny_base(), ranks=(2, 3))
    assert {path.name for path in merge.store.current.iterdir()} == {"config.json", "model.safetensors", *WORDS}
    assert inode(merge, 1, "model.safetensors") != inode(merge, 2, "model.safetensors")


def test_a_checkpoint_that_is_the_base_model_touches_nothing(tmp_path: Path) -> None:
    merge = make_merge(tmp_path, large_base(), limits=NO_LIMITS)
    fold(merge, "same", merge.model)
    assert merge.store.manifest(1)["untouched"] == ["model.safetensors"]
    assert all(torch.equal(merge.published()[name], tensor) for name, tensor in merge.model.items())


def test_what_was_touched_is_not_linked_though_it_is_the_base_models_again(tmp_path: Path) -> None:
    model = {"embed_tokens.weight": torch.ones(1024, 512), "layer.matrix.bias": torch.ones(6)}
    merge = make_merge(tmp_path, model, rule="average", limits=NO_LIMITS, shard_size=1)
    fold(merge, "more", {name: tensor + 0.5 for name, tensor in model.items()})
    fold(merge, "less", model | {TABLE: model[TABLE] - 0.5, "layer.matrix.bias": model["layer.matrix.bias"] + 0.25})
    assert len(merge.store.manifest(2)["untouched"]) == 1
    assert torch.equal(merge.published(2)[TABLE], model[TABLE])
    assert torch.equal(merge.published(1)[TABLE], model[TABLE] + 0.5)


# -------------------------------------------------------------------------------------------------- ties, dtypes, bounds


def test_a_tied_weight_is_untouched_under_both_names(tmp_path: Path) -> None:
    model = large_base()
    model |= {"lm_head.weight": model[TABLE].clone()}
    merge = adapters(tmp_path, model, CONFIG | {"tie_word_embeddings": True}, ranks=(2, 3))
    held = json.loads((merge.store.current / "model.safetensors.index.json").read_text())["weight_map"]
    assert held["lm_head.weight"] == held[TABLE] == UNTOUCHED
    assert inode(merge, 1) == inode(merge, 2)
    assert torch.equal(merge.published()["lm_head.weight"], model[TABLE])


def test_a_tied_weight_is_touched_under_both_names(tmp_path: Path) -> None:
    model = large_base() | {"layer.large.weight": torch.ones(512, 600)}
    model |= {"lm_head.weight": model[TABLE].clone()}
    merge = make_merge(tmp_path, model, CONFIG | {"tie_word_embeddings": True}, limits=NO_LIMITS)
    fold(merge, "a", model | {name: model[TABLE] + 1 for name in (TABLE, "lm_head.weight")})
    held = json.loads((merge.store.current / "model.safetensors.index.json").read_text())["weight_map"]
    assert held["lm_head.weight"] == held[TABLE] == TOUCHED
    assert torch.equal(merge.published()["lm_head.weight"], merge.published()[TABLE])
    assert not torch.equal(merge.published()[TABLE], model[TABLE])


@pytest.mark.parametrize(
    ("stored", "out_dtype"),
    [
        (torch.bfloat16, "base"),
        (torch.float32, "bfloat16"),
        (torch.bfloat16, "float16"),
        (torch.float64, "float32"),
    ],
)
def test_untouched_weights_are_the_base_models_in_the_published_dtype(
    tmp_path: Path, stored: torch.dtype, out_dtype: str
) -> None:
    merge = adapters(tmp_path, large_base(stored), ranks=(2, 3), out_dtype=out_dtype)
    wanted = stored if out_dtype == "base" else getattr(torch, out_dtype)
    assert inode(merge, 1) == inode(merge, 2)
    for name, tensor in merge.published(2).items():
        assert tensor.dtype == (wanted if name != "position_ids" else torch.int64)
        if name != "layer.matrix.weight":
            assert torch.equal(tensor, merge.model[name].to(tensor.dtype))


def test_an_untouched_weight_beyond_the_published_dtype_refuses_the_checkpoint(tmp_path: Path) -> None:
    model = large_base()
    model[TABLE][3, 3] = 1e6
    merge = make_merge(tmp_path, model, out_dtype="float16", limits=NO_LIMITS)
    drop_adapter(merge.watch / "a")
    (row,) = merge.fold_all()
    assert [reason.code for reason in row.reasons] == ["overflow"]
    assert TABLE in row.reasons[0].found


@pytest.mark.filterwarnings("ignore")  # peft and transformers warn of their own
def test_transformers_loads_a_model_of_linked_files(tmp_path: Path) -> None:
    model = llama(vocab_size=9000)
    save_base(tmp_path / "base", model)
    merge = make_merge(tmp_path, weights_of(model), limits=NO_LIMITS)
    for seed in (1, 2):
        save_adapter(merge.watch / str(seed), model, LoraConfig(r=4, target_modules=["q_proj"]), seed)
        fold(merge, str(seed))
    assert inode(merge, 1) == inode(merge, 2)
    loaded = weights_of(LlamaForCausalLM.from_pretrained(merge.store.current))
    published = merge.published()
    assert loaded.keys() == published.keys()
    assert all(torch.equal(tensor, published[name]) for name, tensor in loaded.items())
    assert torch.equal(loaded["lm_head.weight"], weights_of(model)["lm_head.weight"])


# ------------------------------------------------------------------------------------------------------- side files


def test_side_files_are_linked_until_the_base_models_change(tmp_path: Path) -> None:
    save_model(tmp_path / "base", tiny_base())
    (tmp_path / "base" / "1_Pooling").mkdir()
    large = '{"vocabulary": "%s"}' % ("word " * 300_000)
    for name in ("tokenizer.json", "1_Pooling/words.json"):
        (tmp_path / "base" / name).write_text(large)
    merge = adapters(tmp_path, tiny_base(), ranks=(2, 3))
    for name in ("tokenizer.json", "1_Pooling/words.json"):
        assert inode(merge, 1, name) == inode(merge, 2, name)
    assert inode(merge, 1, "tokenizer.json") != inode(merge, 1, "1_Pooling/words.json")
    assert inode(merge, 1, "config.json") != inode(
        merge, 2, "config.json"
    )  # it is small: a flipped bit harms one version
    (tmp_path / "base" / "tokenizer.json").write_text('{"version": 2}')
    fold_adapter(merge, 4)
    assert (merge.store.model(3) / "tokenizer.json").read_text() == '{"version": 2}'
    assert (merge.store.model(2) / "tokenizer.json").read_text() == large
    assert inode(merge, 3, "1_Pooling/words.json") == inode(merge, 2, "1_Pooling/words.json")


# ------------------------------------------------------------------------------------ what is not as it was is not linked


def flipped(path: Path, merge: Sandbox) -> None:
    with writable(path).open("rb+") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"x")
    path.chmod(PUBLIC_FILE)


def replaced_by_a_link(path: Path, merge: Sandbox) -> None:
    path.rename(merge.root / "elsewhere")
    path.symlink_to(merge.root / "elsewhere")


SPOILED: dict[str, Callable[[Path, Sandbox], object]] = {
    "flipped": flipped,
    "touched": lambda path, merge: os.utime(path),
    "of another mode": lambda path, merge: path.chmod(0o644),
    "replaced by a link": replaced_by_a_link,
}


@pytest.mark.parametrize("how", SPOILED)
def test_a_file_that_is_not_as_it_was_written_is_written_again(tmp_path: Path, how: str) -> None:
    merge = adapters(tmp_path, ranks=(2,))
    SPOILED[how](merge.store.model(1) / UNTOUCHED, merge)
    fold_adapter(merge, 3)
    assert not (merge.store.model(2) / UNTOUCHED).is_symlink()
    assert inode(merge, 2) != inode(merge, 1)
    assert merge.store.damaged(2) == []
    assert torch.equal(merge.published(2)[TABLE], merge.model[TABLE])


def test_a_file_with_another_header_is_not_linked(tmp_path: Path) -> None:
    merge = adapters(tmp_path, ranks=(2,))
    file = merge.store.model(1) / UNTOUCHED
    status = file.stat()
    file.unlink()
    save_lone(file, {TABLE: torch.zeros(2)})
    os.truncate(file, status.st_size)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    file.chmod(PUBLIC_FILE)
    fold_adapter(merge, 3)
    assert inode(merge, 2) != inode(merge, 1)


def test_damage_to_a_linked_file_is_named_in_every_version_that_links_it(tmp_path: Path) -> None:
    merge = adapters(tmp_path)
    flipped(merge.store.model(2) / UNTOUCHED, merge)
    ended = merge.mergd("verify")
    assert ended.code == 74
    assert all(f"models/{version:06d}/{UNTOUCHED}" in ended.out + ended.err for version in (1, 2, 3))
