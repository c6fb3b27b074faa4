"""A lone file, held to the contract of formats."""

from pathlib import Path

import pytest
from contracts.format import FormatContract
from support.models import Model, save_lone, tiny_base

from mergd.plugins.formats.interface import Format
from mergd.plugins.formats.lone_file import LoneFile


class TestLoneFile(FormatContract):
    @pytest.fixture
    def form(self) -> Format:
        return LoneFile()

    def write(self, folder: Path, model: Model) -> Path:
        return save_lone(folder / "any name.safetensors", model)


def test_only_the_last_suffix_counts(tmp_path: Path) -> None:
    for name in ("a.safetensors.part", "a.safetensors.index.json", "safetensors"):
        assert not LoneFile().recognises(save_lone(tmp_path / name, tiny_base()))
    assert LoneFile().recognises(save_lone(tmp_path / "a.b.safetensors", tiny_base()))


def test_a_folder_with_the_suffix_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").mkdir()
    assert not LoneFile().recognises(tmp_path / "a.safetensors")
