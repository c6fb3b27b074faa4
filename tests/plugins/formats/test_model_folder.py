"""A model folder, of one file and of shards, held to the contract of formats; and what the index may say."""

import json
from pathlib import Path
from typing import Any

import pytest
from contracts.format import FormatContract
from support.models import Model, save_lone, save_model, save_sharded, tiny_base

from mergd.plugins.formats.interface import Format
from mergd.plugins.formats.model_folder import INDEX, ModelFolder
from mergd.state.errors import Busy, Refused


class TestOneFile(FormatContract):
    @pytest.fixture
    def form(self) -> Format:
        return ModelFolder()

    def write(self, folder: Path, model: Model) -> Path:
        return save_model(folder / "model", model)


class TestShards(FormatContract):
    @pytest.fixture
    def form(self) -> Format:
        return ModelFolder()

    def write(self, folder: Path, model: Model) -> Path:
        return save_sharded(folder / "model", model, 3)


def test_the_index_stands_above_a_single_file(tmp_path: Path) -> None:
    place = save_sharded(tmp_path / "model", tiny_base())
    save_lone(place / "model.safetensors", {"other": tiny_base()["layer.matrix.bias"]})
    assert ModelFolder().contents(place).layout.tensors.keys() == tiny_base().keys()


def test_a_shard_without_an_index_is_never_complete(tmp_path: Path) -> None:
    place = save_sharded(tmp_path / "model", tiny_base())
    (place / INDEX).unlink()
    with pytest.raises(Busy, match="waits for"):
        ModelFolder().contents(place)


def test_an_empty_index_names_no_model(tmp_path: Path) -> None:
    place = save_model(tmp_path / "model", tiny_base())
    (place / INDEX).write_text(json.dumps({"weight_map": {}}))
    try:
        assert ModelFolder().contents(place).layout.tensors == {}
    except (Busy, Refused):
        pass


@pytest.mark.parametrize(
    "index", ["", "{", "[]", "null", "7", '{"weight_map": ', '{"metadata": {"a": [', "\0" * 99, "[" * 100_000]
)
def test_an_index_that_is_not_whole_is_waited_for(tmp_path: Path, index: str) -> None:
    place = save_sharded(tmp_path / "model", tiny_base())
    (place / INDEX).write_text(index)
    with pytest.raises(Busy, match=INDEX):
        ModelFolder().contents(place)


@pytest.mark.parametrize(
    "index",
    [
        "{}",
        '{"weight_map": []}',
        '{"weight_map": 7}',
        '{"weight_map": {"a": "b.safetensors", "a": "c.safetensors"}}',
        '{"weight_map": {}, "weight_map": {}}',
        '{"metadata": {"a": [}, "weight_map": {}}',
        '{"weight_map": {"a": "\\ud800.safetensors"}}',
        '{"weight_map": {}} {}',
    ],
)
def test_an_index_that_no_waiting_mends_is_refused(tmp_path: Path, index: str) -> None:
    place = save_sharded(tmp_path / "model", tiny_base())
    (place / INDEX).write_text(index)
    with pytest.raises(Refused, match="bad-index"):
        ModelFolder().contents(place)


def test_what_an_index_says_beside_the_map_is_passed_over(tmp_path: Path) -> None:
    place = save_sharded(tmp_path / "model", tiny_base())
    weight_map = json.loads((place / INDEX).read_text())["weight_map"]
    beside = {"metadata": {"total_size": 1.5, "more": [{"}": ["]", '"', None]}, []]}, "version": -1}
    (place / INDEX).write_text(json.dumps(beside | {"weight_map": weight_map} | {"last": True}, indent=1))
    assert ModelFolder().contents(place).layout.tensors.keys() == tiny_base().keys()


@pytest.mark.parametrize(
    "shard", [7, None, True, 1.5, [], {}, "", "a/b", "/a", "..", "a\0b", "b.bin", ".b.safetensors"]
)
def test_a_shard_that_is_no_plain_file_name_is_not_opened(tmp_path: Path, shard: Any) -> None:
    place = save_sharded(tmp_path / "model", tiny_base())
    (place / INDEX).write_text(json.dumps({"weight_map": {"a": shard}}))
    with pytest.raises(Refused, match="bad-index"):
        ModelFolder().contents(place)


def test_other_files_are_ignored(tmp_path: Path) -> None:
    place = save_model(tmp_path / "model", tiny_base())
    save_lone(place / "optimizer.safetensors", {"other": tiny_base()["layer.matrix.bias"]})
    (place / "config.json").write_text("no json")
    (place / "adapter_config.json").write_text("{}")
    assert ModelFolder().contents(place).layout.tensors.keys() == tiny_base().keys()
