"""A stream of adapters: slots stay two factors for as long as that pays, and nothing but their bytes tells."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from support.merges import NO_LIMITS, Sandbox, make_merge
from support.models import Model, save_model
from torch import Tensor

from mergd.state.history import History

M, N, RANK = 96, 80, 4  # five adapters of rank 4 take at most half of a matrix of 96 x 80, six do not
ADAPTERS = ("a", "b", "c", "d", "e", "f")
RULES: list[dict[str, Any]] = [
    {"rule": "opcm"},
    {"rule": "opcm", "parameters": {"variant": "orthogonal"}},
    {"rule": "task_arithmetic"},
    {"rule": "average"},
]
MATRIX, TABLE = "layer.proj.weight", "embed_tokens.weight"


def base() -> Model:
    generator = torch.Generator().manual_seed(1)
    shapes = {MATRIX: (M, N), "layer.other.weight": (64, 32), "layer.proj.bias": (M,), TABLE: (900, 400)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def factors(seed: int) -> tuple[Tensor, Tensor]:
    """Return B and A of an adapter; all of one direction, so that projections matter."""
    generator, common = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(99)
    B = torch.randn(M, RANK, generator=generator) + torch.randn(M, RANK, generator=common)
    A = torch.randn(RANK, N, generator=generator) + torch.randn(RANK, N, generator=common)
    return 0.02 * B, A


def save_adapter(place: Path, seed: int) -> None:
    B, A = factors(seed)
    config = {
        "peft_type": "LORA",
        "r": RANK,
        "lora_alpha": RANK,
        "base_model_name_or_path": "base",
        "target_modules": ["proj"],
    }
    names = {f"base_model.model.layer.proj.lora_{which}.weight": tensor for which, tensor in (("B", B), ("A", A))}
    aside = save_model(place.with_name(f".{place.name}"), names, {})
    (aside / "model.safetensors").rename(aside / "adapter_model.safetensors")
    for other in aside.iterdir():
        if other.name != "adapter_model.safetensors":
            other.unlink()
    (aside / "adapter_config.json").write_text(json.dumps(config))
    aside.rename(place)


def whole(seed: int) -> Model:
    """Return the full model that an adapter makes of the base."""
    B, A = factors(seed)
    return base() | {MATRIX: base()[MATRIX] + B @ A}


def streamed(root: Path, *, as_adapters: bool = True, names: tuple[str, ...] = ADAPTERS, **settings: Any) -> Sandbox:
    """Return a merge into which checkpoints were folded one after another, as adapters or as the full models they make."""
    merge = make_merge(root, base(), limits=NO_LIMITS, **settings)
    for name in names:
        if as_adapters:
            save_adapter(merge.watch / name, ord(name))
        else:
            merge.drop(name, whole(ord(name)))
        merge.fold_all()
        assert merge.states()[name] == "folded"
    return merge


def stored(merge: Sandbox, version: int) -> set[str]:
    """Return the names of what a version's slots hold of the matrix."""
    names = set()
    for path in (merge.state / "versions" / f"{version:06d}").glob("slots-*"):
        with safe_open(path, framework="pt") as file:
            names |= {name for name in file.keys() if name.startswith(MATRIX)}  # noqa: SIM118 - it is no mapping
    return names


@pytest.mark.parametrize("settings", RULES, ids=str)
def test_a_slot_is_two_factors_until_that_no_longer_pays_and_the_models_are_those_of_full_checkpoints(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    merge, full = streamed(tmp_path / "a", **settings), streamed(tmp_path / "f", as_adapters=False, **settings)
    for version, name in enumerate(ADAPTERS, start=1):
        as_factors = {f"{MATRIX}:left", f"{MATRIX}:right"}
        assert stored(merge, version) == ({MATRIX} if name == "f" else as_factors)
        ours, theirs = (
            merge.published(version)[MATRIX] - base()[MATRIX],
            full.published(version)[MATRIX] - base()[MATRIX],
        )
        assert float((ours - theirs).norm()) <= 3e-6 * float(theirs.norm())
        one, other = merge.versions()[version - 1].totals, full.versions()[version - 1].totals
        assert one.mean_norm == pytest.approx(other.mean_norm, rel=1e-5)
        assert one.readout_norm == pytest.approx(other.readout_norm, rel=1e-5)
    assert merge.mergd("verify").code == 0


@pytest.mark.parametrize("settings", RULES, ids=str)
def test_full_checkpoints_and_adapters_fold_onto_each_other(tmp_path: Path, settings: dict[str, Any]) -> None:
    merge, full = (
        streamed(tmp_path / "a", names=("a", "b"), **settings),
        streamed(tmp_path / "f", names=("a", "b"), as_adapters=False, **settings),
    )
    for one in (merge, full):
        one.drop("full", one.fine_tuned(7))
        one.fold_all()
    save_adapter(merge.watch / "c", ord("c"))
    full.drop("c", whole(ord("c")))
    for one in (merge, full):
        one.fold_all()
    assert stored(merge, 3) == stored(merge, 4) == {MATRIX}
    ours, theirs = (one.published(4)[MATRIX] - base()[MATRIX] for one in (merge, full))
    assert float((ours - theirs).norm()) <= 3e-6 * float(theirs.norm())


@pytest.mark.parametrize("settings", RULES, ids=str)
def test_bytes_do_not_depend_on_memory_threads_or_what_was_dropped(tmp_path: Path, settings: dict[str, Any]) -> None:
    merge = streamed(tmp_path / "a", **settings)
    little = streamed(tmp_path / "l", memory="600kB", threads=2, **settings)
    assert [v.digest for v in merge.versions()] == [v.digest for v in little.versions()]
    with History(merge.store.database, write=True) as history:
        history.drop_files(4, "slots")
    merge.store.drop(4, "slots")
    assert merge.mergd("replay", 4).code == 0
    assert stored(merge, 4) == {f"{MATRIX}:left", f"{MATRIX}:right"}
    assert merge.mergd("verify").code == 0


def test_a_checkpoint_of_a_sum_is_taken_out_of_factors(tmp_path: Path) -> None:
    merge = streamed(tmp_path / "a", names=("a", "b"), rule="average")
    assert merge.mergd("remove", "a").code == 0
    assert stored(merge, 3) == {f"{MATRIX}:left", f"{MATRIX}:right"}
    left = streamed(tmp_path / "b", names=("b",), rule="average").published()[MATRIX] - base()[MATRIX]
    found = merge.published()[MATRIX] - base()[MATRIX]
    assert float((found - left).norm()) <= 1e-5 * float(left.norm())


def test_factors_are_read_out_by_another_rule_and_exported(tmp_path: Path) -> None:
    merge = streamed(tmp_path / "a", names=("a", "b"), rule="average")
    assert merge.mergd("publish", "--rule", "task_arithmetic", "--set", "lambda=0.5").code == 0
    assert stored(merge, 3) == {f"{MATRIX}:left", f"{MATRIX}:right"}
    expected = sum(((B @ A) for B, A in map(factors, map(ord, ("a", "b")))), torch.zeros(M, N))
    torch.testing.assert_close(merge.published()[MATRIX], base()[MATRIX] + 0.5 * expected, atol=1e-5, rtol=0)
    assert merge.mergd("export", "head", tmp_path / "lora", "--lora", 8).code == 0


def test_a_fold_of_an_adapter_reads_and_writes_no_slot_of_the_model(tmp_path: Path) -> None:
    merge = streamed(tmp_path / "a", names=("a", "b", "c"), rule="opcm")
    *_, last = merge.versions()
    touched = 4 * (M * N + M + 64 * 32)  # published: what is smaller than a MiB is in one file with what was touched
    assert last.bytes_read < 10 * 4 * RANK * (M + N) * 3 + 2 * touched
    assert last.bytes_read < 4 * 900 * 400 / 4
