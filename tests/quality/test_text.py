"""The text kind: names and shapes of the layers, padding, LoRA's names, and (long) the real model and a short training."""

import json
from pathlib import Path

import pytest
import torch
from quality.text import encoder, lora, tasks
from quality.text.encoder import Encoder
from safetensors.torch import save_file

from mergd.plugins.formats.adapter import Adapter


@pytest.fixture
def words(monkeypatch: pytest.MonkeyPatch) -> None:
    """Embeddings of a small vocabulary instead of the model's, which lie in a file of 83 MB."""
    dice = torch.Generator().manual_seed(0)
    shapes = (100, encoder.WIDTH), (encoder.MOST_TOKENS, encoder.WIDTH), (encoder.WIDTH,), (encoder.WIDTH,)
    drawn = tuple(torch.randn(shape, generator=dice) for shape in shapes)
    monkeypatch.setattr(encoder, "_frozen", lambda: drawn)


def a_network() -> Encoder:
    torch.manual_seed(0)
    return Encoder()


@pytest.mark.usefixtures("words")
def test_padding_changes_no_embedding() -> None:
    """A text is embedded alike alone and beside a longer one."""
    network = a_network()
    with torch.no_grad():
        together = network([[1, 2, 3], [1, 4, 5, 6, 7, 8, 9, 2]])
        alone = network([[1, 2, 3]])
    assert torch.allclose(together[:1], alone, atol=1e-6)
    assert torch.allclose(together.norm(dim=1), torch.ones(2))


def test_a_checkpoint_is_the_layers_alone_under_berts_names() -> None:
    """What mergd merges: 36 matrices, their biases, 12 norms; nothing of the embeddings."""
    weights = a_network().state_dict()
    matrices = [name for name, weight in weights.items() if weight.dim() == 2]
    assert len(matrices) == 36
    assert len(weights) == 96
    assert "encoder.layer.0.attention.self.query.weight" in weights
    assert "encoder.layer.5.attention.output.LayerNorm.bias" in weights
    assert 42e6 < sum(weight.nbytes for weight in weights.values()) < 43e6


@pytest.mark.usefixtures("words")
def test_mergd_reads_the_adapter_as_the_change_it_was_trained_as(tmp_path: Path) -> None:
    """The written factors stand for exactly the matrices of the base, and the encoder with them embeds alike."""
    network = a_network()
    base = {name: weight.clone() for name, weight in network.state_dict().items()}
    lora.adapt(network, torch.Generator().manual_seed(1))
    for part in network.modules():
        if isinstance(part, lora.Adapted):
            torch.nn.init.normal_(part.B, std=0.02)
    pairs = lora.factors(network)
    save_file(pairs, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps(lora.ADAPTER_CONFIG))
    matrices = {name: weight.shape for name, weight in base.items() if weight.dim() == 2}
    assert {name: part.shape for name, part in Adapter().contents(tmp_path).parts.items()} == matrices
    whole = Encoder()
    whole.load_state_dict(base | lora.products(base, pairs))
    with torch.no_grad():
        assert torch.allclose(whole([[1, 2, 3]]), network([[1, 2, 3]]), atol=1e-5)


def test_the_sets_of_tasks_share_no_class() -> None:
    """What tuned a rule does not judge it: no class of EIGHT is one of HELD."""
    tuned = {str(source) for classes in tasks.EIGHT.values() for source in classes.values()}
    judged = {str(source) for classes in tasks.HELD.values() for source in classes.values()}
    assert not tuned & judged
    assert len(tasks.EIGHT) == len(tasks.HELD) == 8
    assert len(tasks.TASKS) == len(tasks.EIGHT) + len(tasks.HELD) + len(tasks.UNSEEN)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A task `small` of two classes of invented tokens."""
    pools = [[[1, 2 + label, 10 + i] for i in range(80)] for label in (0, 1)]
    monkeypatch.setattr(tasks, "_pools", lambda task: pools)
    monkeypatch.setattr(tasks, "TRAIN", 96)
    monkeypatch.setattr(tasks, "TEST", 32)


@pytest.mark.usefixtures("small")
def test_a_split_is_told_by_its_seed_balanced_and_disjoint() -> None:
    first, again, other = tasks.split("small", 1), tasks.split("small", 1), tasks.split("small", 2)
    assert first.train == again.train
    assert torch.equal(first.train_labels, again.train_labels)
    assert first.test != other.test
    assert first.train_labels.bincount().tolist() == [48, 48]
    assert first.test_labels.bincount().tolist() == [16, 16]
    assert not {tuple(text) for text in first.train} & {tuple(text) for text in first.test}
    assert all(text[1] - 2 == label for text, label in zip(first.train, first.train_labels.tolist(), strict=True))
