"""The base model: how each weight is treated, by name and shape; ties; what is copied as it is; and blocks of rows."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.models import CONFIG, Model, save_lone, save_model, save_sharded, tiny_base

from mergd.daemon.base import COPIES, Base, examine, kind_of, locate, open_base, row_blocks, tie_setting
from mergd.daemon.progress import Progress
from mergd.state.errors import Misconfigured
from mergd.state.records import TensorInfo

# (name as the families' files spell it, shape) -> how it is treated
LINEAR = {
    "model.layers.0.self_attn.q_proj.weight": (64, 64),
    "encoder.layer.0.attention.self.query.weight": (64, 64),
    "h.0.attn.c_attn.weight": (64, 192),
    "transformer.h.0.mlp.c_fc.weight": (64, 256),
    "lm_head.weight": (100, 64),
    "classifier.weight": (3, 64),
    "visual.proj": (64, 32),
    "text_projection": (64, 32),
    "text_projection.weight": (32, 64),
    "visual_projection.weight": (32, 64),
    "pooler.dense.weight": (64, 64),
    "transformer.resblocks.0.attn.in_proj_weight": (192, 64),
    "multi_head_attention.in_proj_weight": (192, 64),
    "cls.predictions.decoder.weight": (100, 64),
    "embeddings_project.weight": (64, 16),
    "embed_out.weight": (100, 64),
    "model.layers.0.mlp.shared_expert.gate_proj.weight": (64, 64),
    "model.layers.0.mlp.shared_expert_gate.weight": (1, 64),
    "model.layers.0.mixer.in_proj.weight": (64, 32),
    "embedding_hidden_mapping_in.weight": (64, 16),
}
BATCH = {
    "model.layers.0.mlp.experts.gate_up_proj": (8, 64, 128),
    "model.layers.0.mlp.experts.down_proj": (8, 64, 64),
    "block_sparse_moe.experts.w1.weight": (8, 64, 64),
}
LOOKUP = {
    "model.embed_tokens.weight": (100, 64),
    "bert.embeddings.word_embeddings.weight": (100, 64),
    "bert.embeddings.position_embeddings.weight": (512, 64),
    "bert.embeddings.token_type_embeddings.weight": (2, 64),
    "transformer.wte.weight": (100, 64),
    "transformer.wpe.weight": (1024, 64),
    "shared.weight": (100, 64),
    "encoder.embed_positions.weight": (512, 64),
    "gpt_neox.embed_in.weight": (100, 64),
    "text_model.embeddings.token_embedding.weight": (100, 64),
    "vision_model.embeddings.position_embedding.weight": (50, 64),
    "token_embedding.weight": (100, 64),
    "positional_embedding": (77, 64),
    "visual.positional_embedding": (50, 64),
    "vit.embeddings.position_embeddings": (1, 50, 64),
    "pos_embed": (1, 197, 64),
    "tok_embeddings.weight": (100, 64),
    "model.embedding.weight": (100, 64),
    "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight": (32, 8),
    "char_emb.weight": (100, 64),
    "emb.weight": (100, 64),
    "bpe_embedder.weight": (100, 64),
    "quantizer.codebook": (1024, 64),
    "embeddings.weight": (100, 64),
    "rel_pos_emb": (31, 8),
    "swin.encoder.layers.0.blocks.0.attention.self.relative_position_bias_table": (169, 3),
    "vision_encoder.layers.0.attn.rel_pos_h": (27, 64),
    "embeddings.register_tokens": (1, 4, 64),
    "transformer.word_embeddings.weight": (100, 64),
}
OTHER = {
    "model.layers.0.self_attn.q_proj.bias": (64,),
    "layer_norm.weight": (64,),
    "class_embedding": (64,),
    "vit.embeddings.cls_token": (64,),
    "logit_scale": (),
    "model.layers.0.mlp.experts.gate_up_proj_bias": (8, 128),
    "transformer.layer.0.rel_attn.r_w_bias": (12, 64),
    "conv1.weight": (64, 3, 7, 7),
    "vision_model.embeddings.patch_embedding.weight": (64, 3, 16, 16),
    "vit.embeddings.patch_embeddings.projection.weight": (64, 3, 16, 16),
    "feature_extractor.conv_layers.0.conv.weight": (64, 1, 10),
    "encoder.conv1.weight": (64, 80, 3),
    "mamba.mixer.conv1d.weight": (64, 1, 4),
    "patch_embed.proj.weight": (64, 3, 2, 14, 14),
}
KINDS = [
    (kind, name, shape)
    for kind, names in (("matrix", LINEAR | BATCH), ("lookup", LOOKUP), ("other", OTHER))
    for name, shape in names.items()
]


@pytest.mark.parametrize(("kind", "name", "shape"), KINDS, ids=[name for _, name, _ in KINDS])
def test_a_weight_is_treated_by_its_name_and_shape(kind: str, name: str, shape: tuple[int, ...]) -> None:
    assert kind_of(TensorInfo(name, "F32", shape, "", 0, 4 * math.prod(shape))) == kind


# -------------------------------------------------------------------------------------------------------------- ties


def tied_model(**more: torch.Tensor) -> Model:
    model = tiny_base()
    return model | {"lm_head.weight": model["embed_tokens.weight"].clone()} | more


def base_of(folder: Path, model: Model, **config: Any) -> Base:
    return examine(save_model(folder / "base", model, CONFIG | config), Progress())


@pytest.mark.parametrize("config", [{"tie_word_embeddings": True}, {"text_config": {"tie_word_embeddings": True}}])
def test_a_tie_is_where_the_config_says_so_and_the_bytes_agree(tmp_path: Path, config: dict[str, Any]) -> None:
    base = base_of(tmp_path, tied_model(), **config)
    assert base.tied == {"lm_head.weight": "embed_tokens.weight"}
    assert "lm_head.weight" not in [weight.name for weight in base.weights]
    assert "lm_head.weight" not in base.fixed


@pytest.mark.parametrize(
    "config", [{}, {"tie_word_embeddings": False}, {"tie_word_embeddings": None}, {"text_config": None}]
)
def test_equal_bytes_alone_are_no_tie(tmp_path: Path, config: dict[str, Any]) -> None:
    assert base_of(tmp_path, tied_model(), **config).tied == {}
    assert not tie_setting(config)


def test_the_setting_alone_is_no_tie(tmp_path: Path) -> None:
    head = tiny_base()["embed_tokens.weight"] + 1e-3
    assert (
        base_of(tmp_path / "other-bytes", tied_model(**{"lm_head.weight": head}), tie_word_embeddings=True).tied == {}
    )
    assert base_of(tmp_path / "stored-once", tiny_base(), tie_word_embeddings=True).tied == {}
    half = tiny_base()["embed_tokens.weight"].half()
    assert base_of(tmp_path / "dtype", tied_model(**{"lm_head.weight": half}), tie_word_embeddings=True).tied == {}


def test_equal_weights_elsewhere_are_no_tie(tmp_path: Path) -> None:
    model = {f"layer.{k}.weight": torch.zeros(4, 4) for k in range(3)} | {"norm.weight": torch.ones(4)}
    assert base_of(tmp_path, model, tie_word_embeddings=True).tied == {}


# --------------------------------------------------------------------------------------------------- fixed and folded


def test_running_statistics_and_integers_are_copied_as_they_are(tmp_path: Path) -> None:
    model = tiny_base() | {
        "bn.weight": torch.ones(4),
        "bn.running_mean": torch.zeros(4),
        "bn.running_var": torch.ones(4),
        "bn.num_batches_tracked": torch.tensor(7),
        "mask": torch.ones(2, 2, dtype=torch.bool),
        "not_running_mean.weight": torch.ones(3),
    }
    base = base_of(tmp_path, model)
    fixed = {"position_ids", "bn.running_mean", "bn.running_var", "bn.num_batches_tracked", "mask"}
    assert set(base.fixed) == fixed
    assert {weight.name for weight in base.weights} == model.keys() - fixed


def test_the_digest_is_of_the_content_in_whatever_files(tmp_path: Path) -> None:
    model = tiny_base()
    digests = {
        examine(place, Progress()).digest
        for place in (
            save_model(tmp_path / "one", model),
            save_sharded(tmp_path / "three", model, 3),
            save_lone(tmp_path / "lone.safetensors", dict(reversed(model.items()))),
        )
    }
    assert len(digests) == 1
    assert examine(save_model(tmp_path / "other", tiny_base(1)), Progress()).digest not in digests


def test_a_base_is_opened_again_from_headers_and_pins_alone(tmp_path: Path) -> None:
    base = base_of(tmp_path, tied_model(), tie_word_embeddings=True)
    pins = {"base_digest": base.digest, "base_norms": base.norms, "tied": base.tied, "convolutions": "sum"}
    assert open_base(tmp_path / "base", pins) == base


def test_a_base_that_cannot_be_one_is_told_of(tmp_path: Path) -> None:
    with pytest.raises(Misconfigured, match="no floating-point weight"):
        examine(save_model(tmp_path / "integers", {"ids": torch.arange(4)}), Progress())
    (tmp_path / "empty").mkdir()
    with pytest.raises(Misconfigured, match=r"waits for model\.safetensors"):
        examine(tmp_path / "empty", Progress())
    (save_model(tmp_path / "bad", tiny_base()) / "config.json").write_text("{")
    scale = {"scale": torch.ones(3).to(torch.float8_e8m0fnu)}
    with pytest.raises(Misconfigured, match="scale of the base model is F8_E8M0"):
        examine(save_model(tmp_path / "quantised", tiny_base() | scale), Progress())
    with pytest.raises(Misconfigured, match=r"config\.json is no JSON"):
        examine(tmp_path / "bad", Progress())
    (tmp_path / "text.txt").touch()
    with pytest.raises(Misconfigured, match="no format recognises"):
        examine(tmp_path / "text.txt", Progress())


@pytest.mark.parametrize("name", ["/no/such", "./no-such", "~/no-such-folder-at-all"])
def test_a_path_that_is_not_there_is_never_looked_for_on_the_hub(name: str) -> None:
    with pytest.raises(Misconfigured, match="no base model at"):
        locate(name)


# ------------------------------------------------------------------------------------------------------ blocks of rows


@given(rows=st.integers(0, 200), columns=st.integers(0, 50), itemsize=st.sampled_from([1, 2, 4, 8]),
       memory=st.integers(1, 100_000))  # fmt: skip
def test_blocks_cover_each_row_once_and_keep_to_the_memory(rows: int, columns: int, itemsize: int, memory: int) -> None:
    nbytes = rows * columns * itemsize
    blocks = row_blocks((rows, columns), nbytes, memory)
    if blocks == [None]:
        assert nbytes * COPIES <= memory or rows < 2
        return
    pairs = [block for block in blocks if block is not None]
    assert [row for first, last in pairs for row in range(first, last)] == list(range(rows))
    assert all(first < last for first, last in pairs)
    assert all((last - first) * columns * itemsize * COPIES <= memory or last - first == 1 for first, last in pairs)


@pytest.mark.parametrize("shape", [(), (1,), (1, 1000), (0, 5)])
def test_what_has_no_two_rows_is_one_block(shape: tuple[int, ...]) -> None:
    assert row_blocks(shape, 10**9, 1) == [None]
