"""The vision kind: pictures that the seeds tell, tasks kept apart, an encoder that learns, adapters that mergd reads."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from quality import assets
from quality.vision import drawings, glyphs, kind, pictures, styles, tasks
from quality.vision.encoder import Encoder
from quality.vision.kind import Vision
from safetensors.torch import save_file
from torch import Generator, Tensor

from mergd.plugins.formats._formulas import Lora
from mergd.plugins.formats.adapter import Adapter

TASK = "shapes"  # needs no font


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(assets, "QUALITY", tmp_path)
    monkeypatch.setattr(pictures, "TRAIN", 640)
    monkeypatch.setattr(pictures, "TEST", 140)
    pictures.pictures.cache_clear()
    yield
    pictures.pictures.cache_clear()


def a_base() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {name: weight.clone() for name, weight in Encoder().state_dict().items()}


def test_pictures_are_told_by_task_and_seed_whether_made_or_kept() -> None:
    made = pictures.pictures(TASK, 1)
    pictures.pictures.cache_clear()
    kept = pictures.pictures(TASK, 1)
    assert kept is not made
    assert torch.equal(made.train, kept.train)
    assert torch.equal(made.test_labels, kept.test_labels)
    assert not torch.equal(made.train, pictures.pictures(TASK, 2).train)
    assert (len(made.train), len(made.test)) == (pictures.TRAIN, pictures.TEST)
    assert set(made.train_labels.tolist()) == set(range(len(drawings.SHAPES)))


@pytest.mark.parametrize("style", sorted(styles.STYLES))
def test_a_style_changes_a_picture_and_keeps_its_form(style: str) -> None:
    plain = styles.moved(drawings.shapes(), Generator().manual_seed(0))
    seen = styles.STYLES[style](plain, Generator().manual_seed(1))
    assert seen.shape == plain.shape
    assert 0 <= float(seen.min()) < float(seen.max()) <= 1
    assert not torch.allclose(seen, plain, atol=0.1)


def test_what_judges_shares_no_script_and_no_style_with_what_tuned() -> None:
    def scripts(names: tuple[str, ...]) -> set[str]:
        return {name.split("-")[0] for name in names if "-" in name}

    sets = [scripts(tasks.FIFTY), scripts(tasks.HELD), scripts(tasks.UNSEEN), set(glyphs.PRETRAINING)]
    assert len(set.union(*sets)) == sum(map(len, sets)) == len(glyphs.SCRIPTS)
    assert set(tasks.EIGHT) < set(tasks.TWENTY) < set(tasks.FIFTY)
    assert [len(set(names)) for names in (tasks.EIGHT, tasks.TWENTY, tasks.FIFTY, tasks.HELD)] == [8, 20, 50, 18]


def test_two_million_parameters_in_fourteen_linear_weights() -> None:
    weights = Vision().encoder().state_dict()
    assert sum(weight.ndim == 2 for weight in weights.values()) == 14
    assert 1.9e6 < sum(weight.numel() for weight in weights.values()) < 2.1e6


def test_a_few_steps_teach_the_same_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kind, "TUNE_STEPS", 60)
    monkeypatch.setattr(kind, "TUNE_BATCH", 32)
    monkeypatch.setattr(kind, "FISHER_PICTURES", 16)
    vision, base = Vision(), a_base()
    before = {name: weight.clone() for name, weight in base.items()}
    tuned, again = (vision.fine_tune(base, TASK, 1) for _ in range(2))
    assert all(torch.equal(base[name], before[name]) for name in base)
    assert all(torch.equal(tuned.weights[name], again.weights[name]) for name in base)
    assert vision.accuracy(base, tuned.weights, TASK, 1) > vision.accuracy(base, base, TASK, 1) + 25
    assert all((square >= 0).all() and square.any() for square in tuned.fisher.values())
    shuffled = vision.fine_tune(base, TASK, 1, shuffled=True)
    assert vision.accuracy(base, shuffled.weights, TASK, 1) < vision.accuracy(base, tuned.weights, TASK, 1) - 30


def test_mergd_reads_the_adapter_as_the_change_it_was_trained_as(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kind, "TUNE_STEPS", 5)
    base = a_base()
    tuned = Vision().fine_tune(base, TASK, 1, adapter=True)
    save_file(tuned.adapter, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps(tuned.adapter_config))
    parts = Adapter().contents(tmp_path).parts
    assert len(parts) == 14
    for name, written in parts.items():
        fitted = written.fit(tuple(base[name].shape))
        assert isinstance(fitted, Lora)
        read = fitted.task_vector(tuned.adapter.__getitem__, lambda: torch.empty(0)).added_to(base[name])
        assert not torch.equal(read, base[name])
        assert torch.allclose(read, tuned.weights[name], atol=1e-6)
    assert all(torch.equal(tuned.weights[name], base[name]) for name in base.keys() - parts.keys())


def test_what_is_fetched_is_checked_and_unpacked_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assets, "ASSETS", tmp_path)
    monkeypatch.setattr(assets, "_from_debian", lambda path: b"another")
    with pytest.raises(assets.NotFetched, match="sha256"):
        assets.deb("pool/some_1_all.deb", "0" * 64)
    assert not list(tmp_path.iterdir())
