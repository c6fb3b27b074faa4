"""What breaks other mergers, through the whole daemon: measured cases in which OPCM elsewhere fails, or fails silently."""

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from references.opcm_published import published_task_vectors
from safetensors.torch import load_file
from support.merges import NO_LIMITS, Sandbox, make_merge
from support.models import CONFIG, MATRICES, Model, norm, save_sharded, task_vector, tiny_base, weight_errors
from torch import Tensor

from mergd.state.history import History
from mergd.state.records import WeightReport

EXACT = 1e-5  # relative, for each weight


def fold(merge: Sandbox, models: Sequence[Model]) -> None:
    """Fold checkpoints in this order; each must become a version."""
    with merge.loop() as loop:
        for number, model in enumerate(models, start=len(merge.versions()) + 1):
            merge.drop(f"checkpoint-{number:03d}", model)
            loop.post("rescan")
            loop.run(until=loop.idle)
    assert set(merge.states().values()) == {"folded"}


def reports(merge: Sandbox, version: int) -> dict[str, WeightReport]:
    """Return what a version's fold did to each weight."""
    with History(merge.store.database) as history:
        return history.weight_reports(version)


def reference(base: Model, models: Sequence[Model], matrices: Collection[str] = MATRICES) -> Model:
    """Return the published task vector after the last checkpoint, by the transcription of the papers' recurrence."""
    floating = [name for name, tensor in base.items() if tensor.is_floating_point()]
    theta0, *thetas = ({name: model[name].double() for name in floating} for model in (base, *models))
    return dict(published_task_vectors(theta0, thetas, matrices, 0.5, "block")[-1])


def assert_published(merge: Sandbox, expected: Mapping[str, Tensor]) -> None:
    """Assert that the published task vector is the expected one, weight by weight."""
    errors = weight_errors(task_vector(merge.published(), {name: merge.model[name] for name in expected}), expected)
    assert max(errors.values()) < EXACT, errors


def with_extra(**tensors: Tensor) -> Model:
    """Return the tiny base with more tensors; in their names, two underscores are a point."""
    return tiny_base() | {name.replace("__", "."): tensor for name, tensor in tensors.items()}


# --------------------------------------------------------------------------------------------------- zero, and again


def test_a_first_checkpoint_that_equals_the_base_publishes_the_base(merge: Sandbox) -> None:
    fold(merge, [merge.model])
    version = merge.versions()[0]
    assert (version.scale, version.totals.folded, version.totals.mean_norm) == (1.0, 1, 0.0)
    published = merge.published()
    assert all(torch.equal(published[name], tensor) for name, tensor in merge.model.items())
    second = merge.fine_tuned(1)
    fold(merge, [second])
    assert merge.versions()[1].scale == pytest.approx(0.5)
    assert_published(merge, reference(merge.model, [merge.model, second]))


def test_checkpoints_that_cancel_leave_a_finite_model(new_merge: Callable[..., Sandbox]) -> None:
    merge = new_merge(
        rule="opcm", parameters={"alpha": 0.0}, limits=NO_LIMITS
    )  # nothing is projected, so that they cancel
    delta = {name: tensor * 0.25 for name, tensor in merge.fine_tuned(1).items() if tensor.is_floating_point()}
    models = [merge.model | {name: merge.model[name] + sign * delta[name] for name in delta} for sign in (1.0, -1.0)]
    fold(merge, models)
    assert all(bool(tensor.isfinite().all()) for tensor in merge.published().values())


def test_a_weight_that_no_checkpoint_changed_before_is_added_whole(merge: Sandbox) -> None:
    first, second = merge.fine_tuned(1), merge.fine_tuned(2)
    first["layer.matrix.weight"] = merge.model["layer.matrix.weight"]
    fold(merge, [first, second])
    report = reports(merge, 2)["layer.matrix.weight"]
    assert (report.split_rank, report.survived) == (0.0, 1.0)
    assert reports(merge, 2)["layer.tall.weight"].split_rank > 0
    expected = second["layer.matrix.weight"] - merge.model["layer.matrix.weight"]
    assert torch.equal(merge.readouts(2)["layer.matrix.weight"], expected)
    assert_published(merge, reference(merge.model, [first, second]))


def test_the_same_content_has_one_vote_under_any_name_and_in_any_files(merge: Sandbox) -> None:
    one = merge.fine_tuned(1)
    fold(merge, [one])
    before = merge.weight_files(1)
    merge.drop("copy", one)
    merge.drop("turned.safetensors", dict(reversed(one.items())))
    save_sharded(merge.watch / "sharded", one, 3)
    merge.fold_all()
    assert [version.totals.folded for version in merge.versions()] == [1]
    assert merge.weight_files(1) == before


def test_the_same_change_in_another_dtype_is_held_as_a_near_copy(merge: Sandbox) -> None:
    one = merge.fine_tuned(1)
    fold(merge, [one])
    merge.drop("wide", {name: t.double() if t.is_floating_point() else t for name, t in one.items()})
    row = {row.name: row for row in merge.fold_all()}["wide"]
    assert (row.state, [reason.code for reason in row.reasons]) == ("held", ["near-copy"])
    assert len(merge.versions()) == 1


def test_alpha_one_protects_every_direction_that_is_there(tmp_path: Path) -> None:
    merge = make_merge(tmp_path, parameters={"alpha": 1.0})
    fold(merge, [merge.fine_tuned(1), merge.fine_tuned(2)])
    first, second = merge.readouts(1), merge.readouts(2)
    square = "layer.matrix.weight"
    assert float((second[square] - first[square]).norm()) < 1e-5 * float(first[square].norm())
    assert reports(merge, 2)[square].split_rank == 6
    assert float((second["layer.tall.weight"] - first["layer.tall.weight"]).norm()) > 0.1


# --------------------------------------------------------------------------------------------- what counts, and once


def tied_base() -> Model:
    """Return a base whose output embedding is its input embedding, stored under both names."""
    return with_extra(lm_head__weight=tiny_base()["embed_tokens.weight"].clone())


def tied_fine_tune(merge: Sandbox, seed: int) -> Model:
    model = merge.fine_tuned(seed)
    return model | {"lm_head.weight": model["embed_tokens.weight"].clone()}


TIED = CONFIG | {"tie_word_embeddings": True}


def test_tied_embeddings_stored_twice_count_once(tmp_path: Path) -> None:
    merge = make_merge(tmp_path, tied_base(), TIED)
    models = [tied_fine_tune(merge, seed) for seed in (1, 2, 3)]
    fold(merge, models)
    once = {name: tensor for name, tensor in merge.model.items() if name != "lm_head.weight"}
    mean = sum(norm(task_vector(model, once)) for model in models) / 3
    assert merge.versions()[-1].totals.mean_norm == pytest.approx(mean, rel=1e-6)
    assert "lm_head.weight" not in reports(merge, 3)
    expected = reference(once, models)
    assert_published(merge, expected | {"lm_head.weight": expected["embed_tokens.weight"]})
    published = merge.published()
    assert torch.equal(published["lm_head.weight"], published["embed_tokens.weight"])


def test_a_tied_pair_may_be_stored_once_in_a_checkpoint(tmp_path: Path) -> None:
    merge = make_merge(tmp_path, tied_base(), TIED)
    model = tied_fine_tune(merge, 1)
    del model["lm_head.weight"]
    fold(merge, [model])
    published = merge.published()
    assert torch.equal(published["lm_head.weight"], published["embed_tokens.weight"])


def test_without_the_setting_equal_tables_are_two_weights(tmp_path: Path) -> None:
    merge = make_merge(tmp_path, tied_base())
    models = [merge.fine_tuned(seed) for seed in (1, 2)]
    fold(merge, models)
    assert_published(merge, reference(merge.model, models, (*MATRICES, "lm_head.weight")))


def batch_norm_base() -> Model:
    return with_extra(
        norm__weight=torch.ones(6),
        norm__running_mean=torch.zeros(6),
        norm__running_var=torch.ones(6),
        norm__num_batches_tracked=torch.tensor(1000),
    )


def test_running_statistics_and_counters_are_the_bases_and_enter_no_norm(tmp_path: Path) -> None:
    merge = make_merge(tmp_path, batch_norm_base())
    data = {
        "norm.running_mean": torch.full((6,), 1000.0),
        "norm.running_var": torch.full((6,), 5000.0),
        "norm.num_batches_tracked": torch.tensor(9999),
        "position_ids": torch.arange(5) + 7,
    }
    models = [merge.fine_tuned(seed) | data for seed in (1, 2)]
    fold(merge, models)
    folded = {name: tensor for name, tensor in merge.model.items() if name not in data}
    assert merge.versions()[-1].totals.mean_norm < 3
    assert_published(merge, reference(folded, models))
    published = merge.published()
    assert all(torch.equal(published[name], merge.model[name]) for name in data)


def test_norms_do_not_drown_in_float32(tmp_path: Path) -> None:
    size = 2**21
    base = {"big.bias": torch.zeros(size), "layer.weight": torch.zeros(3, 3)}
    merge = make_merge(tmp_path, base)
    theta = {"big.bias": torch.full((size,), 1e-3), "layer.weight": torch.full((3, 3), 1e-3)}
    fold(merge, [theta])
    value = float(theta["layer.weight"][0, 0])
    assert merge.versions()[0].totals.mean_norm == pytest.approx(value * (size + 9) ** 0.5, rel=1e-9)


# ------------------------------------------------------------------------------------------------ names and shapes


def random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


OTHER_SHAPES: dict[str, tuple[Tensor, bool]] = {  # tensor, and whether it is projected
    "mlp.experts.gate_up_proj": (random(3, 5, 4), True),  # no `.weight`, no leaf module
    "h.0.attn.c_attn.weight": (random(4, 12), True),  # GPT-2's Conv1D, stored transposed
    "h.0.attn.c_attn.bias": (random(12), False),
    "vision.patch_embedding.weight": (random(6, 3, 2, 2), False),
    "audio.conv1.weight": (random(5, 4, 3), False),
    "transformer.wte.weight": (random(9, 5), False),
    "class_embedding": (random(6), False),
    "logit_scale": (torch.tensor(2.5), False),
    "empty.weight": (torch.zeros(0, 4), False),
}


def test_what_is_projected_is_decided_by_name_and_shape(tmp_path: Path) -> None:
    base = {name: tensor for name, (tensor, _) in OTHER_SHAPES.items()}
    projected = [name for name, (_, yes) in OTHER_SHAPES.items() if yes]
    merge = make_merge(tmp_path, base, limits=NO_LIMITS)
    models = [merge.fine_tuned(seed, 0.3) for seed in range(4)]
    fold(merge, models)
    assert {name for name, report in reports(merge, 4).items() if report.split_rank} == set(projected)
    assert_published(merge, reference(base, models, projected))


def test_each_expert_of_a_batch_is_projected_for_itself(tmp_path: Path) -> None:
    experts = [random(5, 4) for _ in range(3)]
    fused = make_merge(tmp_path / "fused", {"experts.down_proj": torch.stack(experts)})
    split = make_merge(tmp_path / "split", {f"experts.{k}.down_proj.weight": e for k, e in enumerate(experts)})
    for seed in range(4):
        one = fused.fine_tuned(seed)["experts.down_proj"]
        fold(fused, [{"experts.down_proj": one}])
        fold(split, [{f"experts.{k}.down_proj.weight": one[k].clone() for k in range(3)}])
    found = fused.published()["experts.down_proj"]
    for k in range(3):
        torch.testing.assert_close(found[k], split.published()[f"experts.{k}.down_proj.weight"], rtol=1e-6, atol=1e-6)


# ------------------------------------------------------------------------------------------------------- precision


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_nothing_is_lost_over_many_folds_whatever_the_bases_dtype(tmp_path: Path, dtype: torch.dtype) -> None:
    merge = make_merge(tmp_path, tiny_base(dtype=dtype))
    models = [merge.fine_tuned(seed) for seed in range(24)]
    fold(merge, models)
    head = merge.versions()[-1]
    merged = {name: head.scale * slot.double() for name, slot in merge.readouts(head.number).items()}
    errors = weight_errors(merged, reference(merge.model, models))
    assert max(errors.values()) < EXACT, errors
    published, wide = merge.published(), torch.float64 if dtype == torch.float64 else torch.float32
    for name, readout in merge.readouts(head.number).items():  # cast once
        expected = torch.add(merge.model[name].to(wide), readout.to(wide), alpha=head.scale).to(dtype)
        assert torch.equal(published[name], expected)


def test_a_checkpoint_may_have_another_floating_dtype_than_the_base(merge: Sandbox) -> None:
    models = [
        {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in model.items()}
        for model, dtype in zip(
            (merge.fine_tuned(1), merge.fine_tuned(2), merge.fine_tuned(3)),
            (torch.bfloat16, torch.float16, torch.float64),
            strict=True,
        )
    ]
    fold(merge, models)
    assert merge.published()["layer.matrix.weight"].dtype == torch.float32
    assert_published(merge, reference(merge.model, models))


def test_checkpoints_of_very_different_norms_are_folded_as_they_are(tmp_path: Path) -> None:
    merge = make_merge(tmp_path, limits=NO_LIMITS)
    models = [merge.fine_tuned(1, 1e-3), merge.fine_tuned(2, 10.0), merge.fine_tuned(3, 0.1)]
    fold(merge, models)
    assert_published(merge, reference(merge.model, models))


@pytest.mark.parametrize("variant", ["block", "block_diagonal", "paper"])
def test_each_variant_is_the_recurrence_that_bears_its_name(tmp_path: Path, variant: str) -> None:
    merge = make_merge(tmp_path, parameters={"variant": variant})
    models = [merge.fine_tuned(seed) for seed in range(5)]
    fold(merge, models)
    floating = [name for name, tensor in merge.model.items() if tensor.is_floating_point()]
    theta0, *thetas = ({name: model[name].double() for name in floating} for model in (merge.model, *models))
    assert_published(merge, published_task_vectors(theta0, thetas, MATRICES, 0.5, variant)[-1])


def test_slots_take_the_same_bytes_after_every_fold(merge: Sandbox) -> None:
    fold(merge, [merge.fine_tuned(seed) for seed in range(4)])
    sizes: list[dict[str, Any]] = []
    for version in (1, 2, 3, 4):
        folder = merge.store.versions / f"{version:06d}"
        sizes.append({path.name: path.stat().st_size for path in folder.glob("slots-*")})
        assert all(
            tensor.dtype == torch.float32 for path in folder.glob("slots-*") for tensor in load_file(path).values()
        )
    assert sizes[0]
    assert all(size == sizes[0] for size in sizes)
