"""Adapters, made by the real peft library: folding one gives what its own merge_and_unload gives."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoHaConfig, LoKrConfig, LoraConfig, PeftConfig
from safetensors.torch import load_file, save_file
from support.adapters import Kernel, Small, gpt2, llama, save_adapter, save_base, weights_of
from support.merges import NO_LIMITS, Sandbox, make_merge
from support.models import Model, drop_adapter, weight_errors
from torch import nn

from mergd.plugins.formats.adapter import Adapter, Patterns
from mergd.state.errors import Busy, Refused

pytestmark = pytest.mark.filterwarnings("ignore")  # peft and transformers warn of what is meant here

ATTENTION = ["q_proj", "v_proj"]
CASES: dict[str, tuple[Callable[[], nn.Module], PeftConfig]] = {
    "lora": (llama, LoraConfig(r=4, lora_alpha=8, target_modules=ATTENTION)),
    "all linear maps": (llama, LoraConfig(r=4, target_modules="all-linear")),
    "rslora": (llama, LoraConfig(r=4, lora_alpha=8, use_rslora=True, target_modules=ATTENTION)),
    "ranks and alphas by pattern": (
        llama,
        LoraConfig(
            r=4,
            lora_alpha=8,
            target_modules=ATTENTION,
            rank_pattern={"layers.0.self_attn.q_proj": 2, "v_proj": 3},
            alpha_pattern={r".*\.1\.self_attn\.q_proj": 5, "layers.0.self_attn.v_proj": 16},
        ),
    ),
    "modules to save": (
        llama,
        LoraConfig(r=4, target_modules=ATTENTION, modules_to_save=["lm_head", "input_layernorm"]),
    ),
    "every bias": (Small, LoraConfig(r=4, target_modules=["square"], bias="all")),
    "a bias of its own": (Small, LoraConfig(r=4, target_modules=["square", "wide"], lora_bias=True)),
    "dora": (llama, LoraConfig(r=4, use_dora=True, target_modules=["q_proj", "k_proj", "down_proj"])),
    "dora of (in, out)": (gpt2, LoraConfig(r=4, use_dora=True, target_modules=["c_attn"], fan_in_fan_out=True)),
    "conv1d, stored (in, out)": (gpt2, LoraConfig(r=4, target_modules=["c_attn", "c_proj"], fan_in_fan_out=True)),
    "conv1d, square, and the head visited last": (
        lambda: gpt2(tie_word_embeddings=False),
        LoraConfig(r=4, target_modules=["c_proj", "lm_head"]),
    ),
    "conv1d, square alone, and the head visited last": (
        lambda: gpt2(tie_word_embeddings=False),
        LoraConfig(r=4, target_modules=["attn.c_proj", "lm_head"]),
    ),
    "conv1d, tied embedding": (gpt2, LoraConfig(r=4, target_modules=["wte", "c_fc"])),
    "embedding and head": (llama, LoraConfig(r=4, target_modules=["embed_tokens", "lm_head", "q_proj"])),
    "convolutions": (Small, LoraConfig(r=4, target_modules=["conv", "point", "table", "wide"])),
    "loha": (Small, LoHaConfig(r=4, alpha=6, target_modules=["square", "wide", "conv"])),
    "loha by pattern": (
        Small,
        LoHaConfig(r=4, target_modules=["square", "wide"], rank_pattern={"wide": 3}, alpha_pattern={"square": 2}),
    ),
    "lokr": (Small, LoKrConfig(r=2, alpha=6, target_modules=["square", "wide", "conv", "point"])),
    "lokr, both factors decomposed": (Small, LoKrConfig(r=1, decompose_both=True, target_modules=["square", "wide"])),
}


def folded(root: Path, base: nn.Module, *configs: PeftConfig, **settings: Any) -> tuple[Sandbox, list[Model]]:
    """Fold adapters one after the other; returns what peft merges each to."""
    save_base(root / "base", base)
    chosen = {"rule": "task_arithmetic", "parameters": {"lambda": 1.0}, "limits": NO_LIMITS} | settings
    merge = make_merge(root, weights_of(base), **chosen)
    theirs = [save_adapter(merge.watch / f"adapter-{i}", base, c, seed=i) for i, c in enumerate(configs)]
    merge.fold_all()
    assert set(merge.states().values()) == {"folded"}, [row.reasons for row in merge.checkpoints()]
    return merge, theirs


@pytest.mark.parametrize("name", CASES)
def test_a_fold_gives_what_peft_gives(tmp_path: Path, name: str) -> None:
    make, config = CASES[name]
    base = make()
    merge, (theirs,) = folded(tmp_path, base, config)
    published = merge.published()
    assert max(weight_errors(published, theirs).values()) < 1e-6
    assert any(not torch.equal(published[name], tensor) for name, tensor in weights_of(base).items())


@pytest.mark.parametrize("config", ["embedding and head", "modules to save", "all linear maps"])
def test_large_tables_go_by_in_blocks_of_rows(tmp_path: Path, config: str) -> None:
    base = llama(vocab_size=5000)  # 640 kB; a block may have 83
    merge, theirs = folded(
        tmp_path, base, CASES[config][1], CASES["dora"][1], rule="average", parameters={}, memory=1_000_000
    )
    before = weights_of(base)
    mean = {name: (theirs[0][name] + theirs[1][name]) / 2 for name in before}
    assert max(weight_errors(merge.published(), mean).values()) < 1e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_factors_of_any_dtype(tmp_path: Path, dtype: torch.dtype) -> None:
    base = llama()
    save_base(tmp_path / "base", base)
    merge = make_merge(tmp_path, weights_of(base), rule="task_arithmetic", parameters={"lambda": 1.0}, limits=NO_LIMITS)
    config = LoraConfig(r=4, target_modules=ATTENTION)
    theirs = save_adapter(merge.watch / "a", base, config, dtype=dtype)
    merge.fold_all()
    assert max(weight_errors(merge.published(), theirs).values()) < 1e-6


@pytest.mark.parametrize(
    ("rule", "parameters"),
    [
        ("average", {}),
        ("task_arithmetic", {"lambda": 0.3}),
        *(("opcm", {"variant": variant}) for variant in ("block", "block_diagonal", "paper")),
        ("opcm", {"alpha": 1}),
    ],
)
def test_adapters_and_full_models_in_one_stream_equal_the_dense_ones(
    tmp_path: Path, rule: str, parameters: dict[str, Any]
) -> None:
    base = llama()
    configs = [CASES["all linear maps"][1], CASES["dora"][1], CASES["rslora"][1]]
    mixed, theirs = folded(tmp_path / "mixed", base, *configs, rule=rule, parameters=parameters)
    dense = make_merge(tmp_path / "dense", weights_of(base), rule=rule, parameters=parameters, limits=NO_LIMITS)
    for i, model in enumerate(theirs):
        dense.drop(f"adapter-{i}", model)
    dense.fold_all()
    full = mixed.fine_tuned(9, 0.01)
    for merge in (mixed, dense):
        merge.drop("full", full)
        merge.fold_all()
        assert [version.totals.folded for version in merge.versions()] == [1, 2, 3, 4]
    errors = weight_errors(mixed.published(), dense.published())
    assert max(errors.values()) < 1e-6
    for one, other in zip(mixed.versions(), dense.versions(), strict=True):
        assert one.totals.mean_norm == pytest.approx(other.totals.mean_norm, rel=1e-5)


# -------------------------------------------------------------------------------------------------- what it is known by


def test_another_scale_is_another_checkpoint_and_the_same_one_is_not(tmp_path: Path) -> None:
    base = llama()
    merge, _ = folded(tmp_path, base, LoraConfig(r=4, lora_alpha=8, target_modules=ATTENTION))
    one = merge.watch / "adapter-0"
    for name, alpha in (("same", 8), ("other", 16)):
        place = merge.watch / name
        place.mkdir()
        (place / "adapter_model.safetensors").write_bytes((one / "adapter_model.safetensors").read_bytes())
        config = json.loads((one / "adapter_config.json").read_text())
        (place / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": alpha}))
    merge.fold_all()
    same, other = (next(row for row in merge.checkpoints() if row.name == name) for name in ("same", "other"))
    assert same.duplicate_of == 1
    assert other.duplicate_of is None
    assert len(merge.versions()) == 2


def test_only_the_adapters_bytes_are_read_until_publishing(tmp_path: Path) -> None:
    merge, _ = folded(tmp_path, llama(), CASES["lora"][1])
    adapter = (merge.watch / "adapter-0" / "adapter_model.safetensors").stat().st_size
    slots = sum(layout.nbytes for layout in merge.store.slot_layouts(1).values())
    base = sum(tensor.nbytes for tensor in merge.model.values())
    assert merge.versions()[0].bytes_read <= adapter + base + slots  # publishing reads base and slots once


# ------------------------------------------------------------------------------------------------------ what is refused


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """An adapter of a small decoder."""
    save_adapter(tmp_path / "adapter", llama(), LoraConfig(r=4, target_modules=ATTENTION))
    return tmp_path / "adapter"


def edit(place: Path, **values: Any) -> None:
    path = place / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize(
    ("values", "code", "found"),
    [
        ({"peft_type": "VERA"}, "adapter-kind", "VERA"),
        ({"peft_type": "IA3"}, "adapter-kind", "IA3"),
        ({"peft_type": None}, "adapter-kind", "None"),
        ({"init_lora_weights": "pissa_niter_4"}, "adapter-kind", "pissa_niter_4"),
        ({"init_lora_weights": "olora"}, "adapter-kind", "olora"),
        ({"use_qalora": True}, "adapter-kind", "use_qalora"),
        ({"layer_replication": [[0, 2]]}, "adapter-kind", "layer_replication"),
        ({"alora_invocation_tokens": [1]}, "adapter-kind", "alora_invocation_tokens"),
        ({"use_dora": True}, "bad-adapter", "no magnitude"),
        ({"trainable_token_indices": [1]}, "adapter-kind", "trainable_token_indices"),
        ({"peft_type": "LOHA"}, "adapter-kind", "lora_A"),
        ({"r": 5}, "bad-adapter", "rank 4"),
        ({"r": 0}, "bad-adapter", "r = 0"),
        ({"r": 10**999}, "bad-adapter", "r = 1"),
        ({"r": float("nan")}, "bad-adapter", "r = nan"),
        ({"r": [4]}, "bad-adapter", "r = [4]"),
        ({"lora_alpha": None}, "bad-adapter", "None"),
        ({"peft_type": ["LORA"]}, "adapter-kind", "LORA"),
        ({"alpha_pattern": {"v_proj": {}}}, "bad-adapter", "{}"),
        ({"r": "4"}, "bad-adapter", "r = 4"),
        ({"lora_alpha": float("inf")}, "bad-adapter", "inf"),
        ({"rank_pattern": ["q_proj"]}, "bad-adapter", "rank_pattern"),
        ({"rank_pattern": {"(a+)+$": 4}}, "bad-adapter", "(a+)+$"),
        ({"alpha_pattern": {"(": 4}}, "bad-adapter", "'('"),
        ({"alpha_pattern": {f".*{i}": 4 for i in range(99)}}, "bad-adapter", "99 such"),
    ],
)
def test_what_is_not_computed_is_refused_by_name(place: Path, values: dict[str, Any], code: str, found: str) -> None:
    edit(place, **values)
    with pytest.raises(Refused) as raised:
        Adapter().contents(place)
    (reason,) = raised.value.reasons
    assert reason.code == code
    assert found in reason.found


@pytest.mark.parametrize(
    "config",
    [LoHaConfig(r=2, target_modules=["square"]), LoKrConfig(r=1, decompose_both=True, target_modules=["square"])],
    ids=["loha", "lokr"],
)
def test_a_rank_that_the_factors_do_not_have_is_refused(tmp_path: Path, config: PeftConfig) -> None:
    save_adapter(tmp_path / "adapter", Small(), config)
    edit(tmp_path / "adapter", r=64, alpha=64)
    with pytest.raises(Refused, match="rank 64"):
        Adapter().contents(tmp_path / "adapter")


def test_each_decomposed_factor_has_the_rank_that_the_configuration_says(tmp_path: Path) -> None:
    save_adapter(tmp_path / "adapter", Small(), LoKrConfig(r=1, decompose_both=True, target_modules=["square"]))
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = load_file(file)
    for name, axis in (("lokr_w2_a", 1), ("lokr_w2_b", 0)):
        (full,) = (key for key in tensors if key.endswith(name))
        tensors[full] = torch.cat([tensors[full]] * 3, axis)
    save_file(tensors, file)
    with pytest.raises(Refused, match="rank 3"):
        Adapter().contents(tmp_path / "adapter")


def test_a_kernel_that_no_name_tells_of_is_folded_by_every_rule(tmp_path: Path) -> None:
    for rule, variant in (("opcm", {}), ("opcm", {"variant": "paper"}), ("average", {})):
        root = tmp_path / (rule + "".join(variant.values()))
        merge, theirs = folded(root, Kernel(), LoraConfig(r=2, target_modules=["mix"]), rule=rule, parameters=variant)
        assert max(weight_errors(merge.published(), theirs[0]).values()) < 1e-6


def test_many_patterns_on_many_long_names_take_no_time() -> None:
    keys = {f"[a.x]*!{k}": 4 for k in range(16)}
    patterns = Patterns(keys)
    started = time.process_time()
    for k in range(500):
        assert patterns.first("a.x" * 80 + str(k)) is None
    assert time.process_time() - started < 20  # it took 11 s for 64 of them, a wide margin below a hang


def test_it_waits_for_its_configuration_which_comes_last(place: Path) -> None:
    text = (place / "adapter_config.json").read_text()
    for part in ("", text[: len(text) // 2]):
        (place / "adapter_config.json").write_text(part)
        with pytest.raises(Busy, match=r"adapter_config\.json"):
            Adapter().contents(place)
    (place / "adapter_config.json").unlink()
    with pytest.raises(Busy, match=r"waits for adapter_config\.json"):
        Adapter().contents(place)


def test_a_pickled_adapter_is_refused(place: Path) -> None:
    (place / "adapter_model.safetensors").rename(place / "adapter_model.bin")
    with pytest.raises(Refused, match="pickle"):
        Adapter().contents(place)


def test_the_first_pattern_that_a_name_ends_in_counts() -> None:
    patterns = Patterns(["layers.1.q_proj", r".*layers\.\d.q_proj", "q_proj", "k_proj"])
    assert patterns.first("model.layers.1.q_proj") == "layers.1.q_proj"
    assert patterns.first("model.layers.2.q_proj") == r".*layers\.\d.q_proj"
    assert patterns.first("model.head.q_proj") == "q_proj"
    assert patterns.first("model.head.seq_proj") is None


def test_the_formulas_are_the_same_text_for_ever(tmp_path: Path) -> None:
    contents = Adapter().contents(drop_adapter(tmp_path / "adapter", r=4, lora_alpha=6))
    names = '["base_model.model.layer.matrix.lora_B.weight", "base_model.model.layer.matrix.lora_A.weight"]'
    assert contents.formulas == f'["layer.matrix.weight", {names}, 1.5]'
