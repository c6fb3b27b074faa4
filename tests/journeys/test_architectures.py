"""Any architecture, by tensor name and shape: folded, published, and loaded by what would load it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from support.merges import make_merge
from support.models import Model, fine_tuned, load_model, save_model, save_sharded, task_vector, tiny_base
from torch import Tensor, nn
from tqdm import tqdm

tqdm.monitor_interval = 0  # no thread that watches progress bars
pytestmark = pytest.mark.filterwarnings("ignore")  # transformers warns of its own

SMALL: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION: dict[str, Any] = {"image_size": 8, "patch_size": 4}
MODELS: dict[str, Callable[[], nn.Module]] = {
    "vision encoder": lambda: transformers.ViTModel(transformers.ViTConfig(**SMALL, **VISION)),
    "two towers": lambda: transformers.CLIPModel(
        transformers.CLIPConfig(
            text_config=SMALL | {"vocab_size": 30, "max_position_embeddings": 9},
            vision_config=SMALL | VISION,
            projection_dim=8,
        )
    ),
    "text encoder": lambda: transformers.BertModel(transformers.BertConfig(**SMALL, vocab_size=30)),
    "decoder": lambda: transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**SMALL, vocab_size=30, num_key_value_heads=1, tie_word_embeddings=False)
    ),
    "tied decoder": lambda: transformers.Qwen2ForCausalLM(
        transformers.Qwen2Config(**SMALL, vocab_size=30, num_key_value_heads=1, tie_word_embeddings=True)
    ),
    "encoder and decoder": lambda: transformers.T5ForConditionalGeneration(
        transformers.T5Config(d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2, vocab_size=30)
    ),
    "experts": lambda: transformers.MixtralForCausalLM(
        transformers.MixtralConfig(
            **SMALL, vocab_size=30, num_key_value_heads=1, num_local_experts=3, tie_word_embeddings=False
        )
    ),
    "convolutions": lambda: transformers.ResNetModel(
        transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1])
    ),
}


@pytest.mark.parametrize("convolutions", ["sum", "project"])
@pytest.mark.parametrize("name", MODELS)
def test_what_is_published_loads_as_the_base_did(tmp_path: Path, name: str, convolutions: str) -> None:
    torch.manual_seed(0)
    model = MODELS[name]()
    model.save_pretrained(tmp_path / "base", max_shard_size="20kB")  # type: ignore[operator]
    base = load_model(tmp_path / "base")
    merge = make_merge(tmp_path, base, convolutions=convolutions)
    for seed in (1, 2):
        save_sharded(merge.watch / f"tune-{seed}", fine_tuned(base, seed, 0.01), shards=2)
    merge.fold_all()
    assert set(merge.states().values()) == {"folded"}
    merged, info = type(model).from_pretrained(merge.store.current, output_loading_info=True)  # type: ignore[attr-defined]
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    published = merge.published()
    ours = merged.state_dict()
    assert published.keys() == base.keys()
    assert all(torch.equal(ours[key], tensor) for key, tensor in published.items() if key in ours)
    changed = {key for key in published if not torch.equal(published[key], base[key])}
    assert changed == {key for key, t in base.items() if t.is_floating_point() and "running_" not in key}


def test_an_unknown_model_type_with_code_of_its_own_is_folded_and_no_code_is_run(tmp_path: Path) -> None:
    config = {"model_type": "never-heard-of", "auto_map": {"AutoModel": "evil.Model"}}
    save_model(tmp_path / "base", tiny_base(), config)
    merge = make_merge(tmp_path)
    place = merge.drop("a", 1)
    (place / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    merge.fold_all()
    assert merge.states() == {"a": "folded"}
    assert not (tmp_path / "ran").exists()
    assert not list(merge.store.current.glob("*.py"))


def test_a_projected_convolution_equals_its_matrix(tmp_path: Path) -> None:
    kernel = torch.randn(6, 3, 2, 2, generator=torch.Generator().manual_seed(3))
    published = []
    for i, shape in enumerate([(6, 3, 2, 2), (6, 12)]):
        base = {"conv.weight": kernel.reshape(shape)}
        merge = make_merge(tmp_path / str(i), base, convolutions="project")
        for seed in (1, 2, 3):
            merge.drop(f"{seed}", {"conv.weight": fine_tuned({"w": kernel}, seed)["w"].reshape(shape)})
        merge.fold_all()
        published.append(merge.published()["conv.weight"].reshape(6, 12))
    assert torch.equal(*published)


def test_every_expert_of_a_stack_is_folded_as_its_own_matrix(tmp_path: Path) -> None:
    stack = torch.randn(3, 6, 4, generator=torch.Generator().manual_seed(3))
    stacked = make_merge(tmp_path / "stacked", {"experts.gate_up_proj": stack})
    apart = make_merge(tmp_path / "apart", {f"experts.{i}.weight": stack[i].clone() for i in range(3)})
    for seed in (1, 2, 3):
        tuned = fine_tuned({"w": stack}, seed)["w"]
        stacked.drop(f"{seed}", {"experts.gate_up_proj": tuned})
        apart.drop(f"{seed}", {f"experts.{i}.weight": tuned[i].clone() for i in range(3)})
    stacked.fold_all()
    apart.fold_all()
    matrices = apart.published()
    expected = torch.stack([matrices[f"experts.{i}.weight"] for i in range(3)])
    assert torch.allclose(stacked.published()["experts.gate_up_proj"], expected, rtol=1e-5, atol=1e-6)


# --------------------------------------------------------------------------------------------------- tied embeddings

TABLE, HEAD = "embed_tokens.weight", "lm_head.weight"


def tied(model: Model, *names: str) -> Model:
    """Return a model whose embedding stands under these names."""
    rest = {name: tensor for name, tensor in model.items() if name not in (TABLE, HEAD)}
    return rest | {name: model[TABLE].clone() for name in names}


@pytest.mark.parametrize("stored", [(TABLE,), (TABLE, HEAD)], ids=["base-once", "base-twice"])
@pytest.mark.parametrize("given", [(TABLE,), (HEAD,), (TABLE, HEAD), (HEAD, TABLE)], ids="+".join)
def test_a_tied_weight_is_one_under_whatever_name(
    tmp_path: Path, stored: tuple[str, ...], given: tuple[str, ...]
) -> None:
    base = tied(tiny_base(), *stored)
    merge = make_merge(tmp_path, base, {"tie_word_embeddings": True}, rule="task_arithmetic", parameters={"lambda": 1})
    tuned = fine_tuned(tied(tiny_base(), TABLE), 1)
    merge.drop("a", tied(tuned, *given))
    merge.fold_all()
    assert merge.states() == {"a": "folded"}
    published = merge.published()
    assert published.keys() == base.keys()
    assert all(torch.allclose(published[name], tuned[TABLE]) for name in stored)
    assert _norm_of(task_vector(tuned, tied(tiny_base(), TABLE))) == pytest.approx(merge.versions()[0].totals.mean_norm)
    assert json.loads((merge.store.current / "config.json").read_text()) == {"tie_word_embeddings": True}


@pytest.mark.parametrize("stored", [(TABLE,), (TABLE, HEAD)], ids=["base-once", "base-twice"])
def test_a_checkpoint_that_untied_its_embedding_is_refused(tmp_path: Path, stored: tuple[str, ...]) -> None:
    merge = make_merge(tmp_path, tied(tiny_base(), *stored), {"tie_word_embeddings": True})
    tuned = tied(fine_tuned(tied(tiny_base(), TABLE), 1), TABLE, HEAD)
    tuned[HEAD][0, 0] += 1
    merge.drop("a", tuned)
    merge.fold_all()
    assert [reason.code for row in merge.checkpoints() for reason in row.reasons] == ["untied"]


def test_a_head_of_its_own_is_extra_where_the_base_says_that_nothing_is_tied(tmp_path: Path) -> None:
    merge = make_merge(tmp_path, tied(tiny_base(), TABLE), {"tie_word_embeddings": False})
    merge.drop("a", tied(fine_tuned(tied(tiny_base(), TABLE), 1), TABLE, HEAD))
    merge.fold_all()
    assert [reason.code for row in merge.checkpoints() for reason in row.reasons] == ["extra-weights"]


@pytest.mark.parametrize("nested", [False, True])
def test_a_configuration_that_calls_two_weights_tied_is_published_true(tmp_path: Path, nested: bool) -> None:
    base = tied(tiny_base(), TABLE) | {HEAD: torch.ones(11, 6)}
    config: dict[str, Any] = {"tie_word_embeddings": True, "model_type": "x"}
    merge = make_merge(tmp_path, base, {"text_config": config, "model_type": "y"} if nested else config)
    merge.drop("a", fine_tuned(base, 1))
    merge.fold_all()
    published = json.loads((merge.store.current / "config.json").read_text())
    assert (published["text_config"] if nested else published)["tie_word_embeddings"] is False


def _norm_of(weights: dict[str, Tensor]) -> float:
    return float(torch.cat([tensor.flatten() for tensor in weights.values()]).norm())
