"""Publishing: base + scale x read-out, cast once, and every other file from the pinned base alone."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from support.merges import NO_LIMITS, Sandbox, make_merge
from support.models import CONFIG, Model, fine_tuned, load_model, save_lone, save_model, save_sharded, tiny_base

from mergd.daemon.cards import WORDS
from mergd.daemon.initialise import initialise
from mergd.daemon.progress import Progress
from mergd.daemon.publishing import merge as add_up
from mergd.daemon.settings import validate

SIDE_FILES: dict[str, str] = {
    "config.json": json.dumps(CONFIG | {"torch_dtype": "float32", "auto_map": {"AutoModel": "modeling.Evil"}}),
    "tokenizer.json": '{"version": "1.0"}',
    "tokenizer_config.json": json.dumps({"auto_map": {"AutoTokenizer": ["tok.Evil", None]}, "padding_side": "left"}),
    "vocab.txt": "a\nb\n",
    "special_tokens_map.json": "{}",
    "generation_config.json": "{}",
    "preprocessor_config.json": "{}",
    "chat_template.jinja": "{{ messages }}",
    "list.json": "[1, 2]",
    "no.json": "{ not json",
    "1_Pooling/config.json": '{"pooling_mode_mean_tokens": true}',
    "LICENSE": "Apache-2.0",
}
LEFT_OUT = (
    "1_Pooling/README.md",
    "1_Pooling/mergd_manifest.json",
    ".gitattributes",
    ".cache/huggingface/x.json",
    "modeling.py",
    "lib.so",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "flax_model.msgpack",
    "tf_model.h5",
    "model.onnx",
    "onnx/model.onnx_data",
    "weights.gguf",
    "rust_model.ot",
    "other.safetensors",
    "optimizer.pt",
    "scheduler.pt",
    "rng_state.pth",
    "training_args.bin",
    "trainer_state.json",
)


def base_with_side_files(root: Path) -> None:
    """Make a base model whose folder is full of everything."""
    save_model(root / "base", tiny_base())
    for name, text in (SIDE_FILES | dict.fromkeys(LEFT_OUT, "{}")).items():
        path = root / "base" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def published_files(merge: Sandbox) -> dict[str, Path]:
    return {
        str(path.relative_to(merge.store.model(1))): path for path in merge.store.model(1).rglob("*") if path.is_file()
    }


def folded(root: Path, *arguments: Any, **settings: Any) -> Sandbox:
    """Return a merge of one checkpoint."""
    merge = make_merge(root, *arguments, **settings)
    merge.drop("a", 1)
    assert {row.state for row in merge.fold_all()} == {"folded"}
    return merge


# ------------------------------------------------------------------------------------------------------- side files


def test_what_a_model_needs_is_copied_from_the_base_and_nothing_else(tmp_path: Path) -> None:
    base_with_side_files(tmp_path)
    files = published_files(folded(tmp_path))
    assert files.keys() == SIDE_FILES.keys() | {"model.safetensors", *WORDS}
    changed = ("config.json", "tokenizer_config.json")
    for name, text in SIDE_FILES.items():
        if name not in changed:
            assert files[name].read_text() == text
    assert {path.stat().st_mode & 0o777 for path in files.values()} == {0o444}
    assert {path.parent.stat().st_mode & 0o777 for path in files.values()} == {0o755}


def test_no_loader_is_told_to_run_code(tmp_path: Path) -> None:
    base_with_side_files(tmp_path)
    files = published_files(folded(tmp_path))
    assert json.loads(files["config.json"].read_text()) == CONFIG | {"torch_dtype": "float32"}
    assert json.loads(files["tokenizer_config.json"].read_text()) == {"padding_side": "left"}


def test_nor_is_one_deeper_inside_a_configuration(tmp_path: Path) -> None:
    nested = CONFIG | {"text_config": {"auto_map": {"AutoModel": "org/evil--modeling.Evil"}, "hidden_size": 6}}
    files = published_files(folded(tmp_path, None, nested))
    assert json.loads(files["config.json"].read_text()) == CONFIG | {"text_config": {"hidden_size": 6}}


def test_code_is_copied_where_the_operator_wants_it(tmp_path: Path) -> None:
    base_with_side_files(tmp_path)
    files = published_files(folded(tmp_path, copy_code=True))
    assert "modeling.py" in files
    assert files["config.json"].read_text() == SIDE_FILES["config.json"]
    assert "auto_map" in files["tokenizer_config.json"].read_text()
    assert "pytorch_model.bin" not in files


def test_nothing_but_weights_is_taken_from_a_checkpoint(tmp_path: Path) -> None:
    merge = make_merge(tmp_path)
    place = save_model(
        merge.root / "aside", merge.fine_tuned(1), {"model_type": "evil", "auto_map": {"AutoModel": "x"}}
    )
    for name in ("modeling.py", "tokenizer.json", "generation_config.json", "model.safetensors.index.json.py"):
        (place / name).write_text("import os")
    place.rename(merge.watch / "a")
    merge.fold_all()
    files = published_files(merge)
    assert files.keys() == {"config.json", "model.safetensors", *WORDS}
    assert json.loads(files["config.json"].read_text()) == CONFIG


def test_no_link_of_the_base_leads_out_of_it(tmp_path: Path) -> None:
    base_with_side_files(tmp_path)
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "key.txt").write_text("secret")
    (tmp_path / "base" / "linked").symlink_to(tmp_path / "secrets")
    assert "linked/key.txt" not in published_files(folded(tmp_path))


def test_the_cache_of_the_hub_links_its_files_and_they_are_copied(tmp_path: Path) -> None:
    save_model(tmp_path / "blobs", tiny_base())
    (tmp_path / "base").mkdir()
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "base" / name).symlink_to(tmp_path / "blobs" / name)
    files = published_files(folded(tmp_path))
    assert files.keys() == {"config.json", "model.safetensors", *WORDS}
    assert not any(path.is_symlink() for path in files.values())


def test_a_base_of_one_file_is_published_as_one_file(tmp_path: Path) -> None:
    save_lone(tmp_path / "base", tiny_base()).rename(tmp_path / "base.safetensors")
    (tmp_path / "secret.txt").touch()
    merge = Sandbox(tmp_path, tiny_base())
    merge.watch.mkdir()
    values = {"base_model": str(tmp_path / "base.safetensors"), "watch": merge.watch, "state": merge.state, "quiet": 0}
    initialise(validate(values, ""), merge.config, Progress())
    merge.drop("a", 1)
    merge.fold_all()
    assert published_files(merge).keys() == {"model.safetensors", *WORDS}


# ----------------------------------------------------------------------------------------------------------- weights


def test_integers_are_the_bases_whatever_the_checkpoint_says(tmp_path: Path) -> None:
    merge = make_merge(tmp_path)
    merge.drop("a", merge.fine_tuned(1) | {"position_ids": torch.arange(5) + 100})
    merge.fold_all()
    assert torch.equal(merge.published()["position_ids"], torch.arange(5))


@pytest.mark.parametrize(("out_dtype", "dtype"), [("bfloat16", torch.bfloat16), ("float16", torch.float16)])
def test_the_published_dtype_is_in_the_weights_and_in_the_config(
    tmp_path: Path, out_dtype: str, dtype: torch.dtype
) -> None:
    model = tiny_base() | {"bn.running_mean": torch.ones(3)}
    merge = folded(tmp_path, model, CONFIG | {"torch_dtype": "float32", "text_config": {"a": 1}}, out_dtype=out_dtype)
    published = merge.published()
    assert {published[name].dtype for name in published if name not in ("position_ids", "bn.running_mean")} == {dtype}
    assert (published["position_ids"].dtype, published["bn.running_mean"].dtype) == (torch.int64, torch.float32)
    config = json.loads((merge.store.current / "config.json").read_text())
    assert config == CONFIG | {"torch_dtype": out_dtype, "text_config": {"a": 1}}
    wanted = {name: tensor.to(dtype) for name, tensor in merge.fine_tuned(1).items() if tensor.is_floating_point()}
    found = {name: published[name] for name in wanted if name != "bn.running_mean"}
    assert all(torch.allclose(found[name].float(), wanted[name].float(), rtol=1e-2) for name in found)


@pytest.mark.parametrize("config", [{"dtype": "float32"}, {"torch_dtype": "float32"}, {}])
def test_the_dtype_is_named_as_the_config_names_it(tmp_path: Path, config: dict[str, str]) -> None:
    merge = folded(tmp_path, None, CONFIG | config, out_dtype="bfloat16")
    found = json.loads((merge.store.current / "config.json").read_text())
    assert found == CONFIG | dict.fromkeys(config or ["dtype"], "bfloat16")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_bases_dtype_is_kept_where_none_is_asked_for(tmp_path: Path, dtype: torch.dtype) -> None:
    merge = folded(tmp_path, tiny_base(dtype=dtype))
    floating = [tensor for tensor in merge.published().values() if tensor.is_floating_point()]
    assert {tensor.dtype for tensor in floating} == {dtype}
    assert (merge.store.current / "config.json").read_text() == (merge.base / "config.json").read_text()


def test_a_weight_beyond_the_published_dtype_refuses_its_checkpoint(tmp_path: Path) -> None:
    merge = make_merge(tmp_path, out_dtype="float16", limits=NO_LIMITS)
    model = merge.fine_tuned(1)
    model["layer.matrix.bias"][2] = 1e6
    merge.drop("a", model)
    merge.drop("b", 2)
    rows = {row.name: row for row in merge.fold_all()}
    assert [reason.code for reason in rows["a"].reasons] == ["overflow"]
    assert "layer.matrix.bias" in rows["a"].reasons[0].found
    assert rows["b"].state == "folded"
    assert all(bool(tensor.isfinite().all()) for tensor in merge.published().values())


def test_what_was_added_up_is_cast_once(tmp_path: Path) -> None:
    theta0, readout = torch.tensor([1.0], dtype=torch.bfloat16), torch.tensor([2.0**-9])
    assert add_up(theta0, readout, 1.0).dtype == torch.float32
    assert float(add_up(theta0, readout, 1.0)) == 1.0 + 2.0**-9
    assert add_up(theta0.double(), readout, 1.0).dtype == torch.float64
    assert add_up(theta0, readout.double(), 1.0).dtype == torch.float64


# ------------------------------------------------------------------------------------------------------------ shards


@pytest.mark.parametrize("shard_size", [1, 200, 400, 10**6])
def test_shards_are_what_the_ecosystem_reads(tmp_path: Path, shard_size: int) -> None:
    merge = folded(tmp_path, shard_size=shard_size)
    whole = folded(tmp_path / "whole")
    files = sorted(path.name for path in merge.store.current.glob("*.safetensors"))
    assert {name: tensor.tolist() for name, tensor in merge.published().items()} == {
        name: tensor.tolist() for name, tensor in whole.published().items()
    }
    if len(files) == 1:
        assert files == ["model.safetensors"]
        assert not (merge.store.current / "model.safetensors.index.json").exists()
        return
    assert files == [f"model-{k:05d}-of-{len(files):05d}.safetensors" for k in range(1, len(files) + 1)]
    index = json.loads((merge.store.current / "model.safetensors.index.json").read_text())
    held = {name: file for file in files for name in load_file(merge.store.current / file)}
    assert index["weight_map"] == held
    sizes = {name: tensor.numel() * tensor.element_size() for name, tensor in merge.model.items()}
    assert index["metadata"]["total_size"] == sum(sizes.values())
    for file in files:
        inside = [name for name in held if held[name] == file]
        assert sum(sizes[name] for name in inside) <= shard_size or len(inside) == 1


def test_a_published_file_says_that_it_is_torchs(tmp_path: Path) -> None:
    with safe_open(folded(tmp_path).store.current / "model.safetensors", framework="pt") as opened:
        assert opened.metadata() == {"format": "pt"}


def test_a_sharded_base_is_published_by_the_setting_and_not_by_its_own_shards(tmp_path: Path) -> None:
    save_sharded(tmp_path / "base", tiny_base(), 3)
    merge = folded(tmp_path)
    assert published_files(merge).keys() == {"model.safetensors", *WORDS}
    assert merge.published().keys() == tiny_base().keys()


def test_a_published_model_can_be_the_base_of_another_merge(tmp_path: Path) -> None:
    first = folded(tmp_path / "first", shard_size=300)
    model: Model = load_model(first.store.current)
    (tmp_path / "second").mkdir()
    os.symlink(first.store.model(1), tmp_path / "second" / "base")
    second = make_merge(tmp_path / "second", model)
    second.drop("b", fine_tuned(model, 2))
    second.fold_all()
    expected = fine_tuned(model, 2)
    assert all(torch.allclose(tensor, expected[name], atol=1e-6) for name, tensor in second.published().items())
