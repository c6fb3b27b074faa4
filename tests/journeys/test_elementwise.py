"""The elementwise rules through the daemon: checkpoints from files, in blocks of rows, against the batch methods."""

from dataclasses import asdict
from importlib import import_module
from pathlib import Path

import pytest
import torch
from contracts.streaming import relative_error
from references.interface import Checkpoints
from support.merges import NO_LIMITS, Sandbox, make_merge
from support.models import Model

from mergd.daemon.requests import Remove
from mergd.plugins.registry import load
from mergd.state.reading import Reader

pytestmark = pytest.mark.long

UNSEEDED = (
    "average",
    "task_arithmetic",
    "ema",
    "lawa",
    "ties",
    "breadcrumbs",
    "magmax",
    "model_stock",
    "sce",
    "stitch",
)
SEEDED = ("dare", "della")
SUMS = ("average", "task_arithmetic", "dare", "ties", "breadcrumbs", "della", "model_stock", "sce", "stitch")
ROWS, WHOLE, ROOM = 10**6, 2 * 10**7, 10**9  # bytes of memory: the matrix in blocks of rows, or whole, or all at once
SEEDS = {"a": 1, "b": 2, "c": 3, "d": 4}


def base() -> Model:
    """Return a model with a matrix that does not fit into the least memory."""
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(shape, generator=generator)
        for name, shape in {"layer.weight": (900, 300), "layer.bias": (300,), "norm.scale": (1,)}.items()
    }


def merged(root: Path, rule: str, names: str = "abcd", memory: int = ROOM) -> Sandbox:
    """Return a merge that has folded these."""
    memory = max(memory, WHOLE) if rule in ("breadcrumbs", "model_stock") else memory  # these see the matrix whole
    merge = make_merge(root, base(), rule=rule, memory=memory, limits=NO_LIMITS)
    for name in names:
        merge.drop(name, merge.fine_tuned(SEEDS[name]))
    merge.fold_all()
    assert set(merge.states().values()) == {"folded"}
    return merge


def task_vectors(merge: Sandbox, names: str) -> list[Model]:
    """Return what the checkpoints change."""
    tuned = [merge.fine_tuned(SEEDS[name]) for name in names]
    return [{name: weight - merge.model[name] for name, weight in model.items()} for model in tuned]


def slots(merge: Sandbox, version: int) -> list[torch.Tensor]:
    """Return all slots of a version."""
    found = []
    for _, layout in sorted(merge.store.slot_layouts(version).items()):
        with Reader(layout) as reader:
            found += [reader.read(name) for name in layout.tensors]
    return found


def errors(merge: Sandbox, published: Model, expected: Model) -> dict[str, float]:
    """Return how far each weight is from base + expected, as a share of what changed."""
    base = {name: weight.double() for name, weight in merge.model.items()}
    return {name: relative_error(published[name].double() - base[name], expected[name]) for name in base}


@pytest.mark.parametrize("rule", UNSEEDED)
def test_what_is_published_is_the_batch_methods_result(tmp_path: Path, rule: str) -> None:
    merge = merged(tmp_path, rule, memory=ROWS)
    taus = [{name: tau.double() for name, tau in vector.items()} for vector in task_vectors(merge, "abcd")]
    kinds = {"layer.weight": "matrix", "layer.bias": "other", "norm.scale": "other"}
    expected = import_module(f"references.{rule}").merge(Checkpoints(taus, kinds), **asdict(load("rules", rule)()))
    found = errors(merge, merge.published(), expected)
    assert max(found.values()) < 1e-4, found  # published weights are float32, and changes a tenth of them or less


@pytest.mark.parametrize("rule", SEEDED + UNSEEDED)
def test_less_memory_gives_the_same_bytes(tmp_path: Path, rule: str) -> None:
    whole, blocks = (merged(tmp_path / str(memory), rule, "ab", memory) for memory in (ROOM, ROWS))
    assert all(torch.equal(*pair) for pair in zip(slots(whole, 2), slots(blocks, 2), strict=True))
    assert all(torch.equal(weight, blocks.published()[name]) for name, weight in whole.published().items())


@pytest.mark.parametrize("rule", SUMS)
def test_without_a_checkpoint_it_is_what_the_others_make(tmp_path: Path, rule: str) -> None:
    merge, others = merged(tmp_path / "all", rule, memory=ROWS), merged(tmp_path / "others", rule, "acd")
    with merge.loop() as loop:
        loop.ask(Remove(checkpoint="b"))
    expected = {name: weight.double() - others.model[name].double() for name, weight in others.published().items()}
    found = errors(merge, merge.published(), expected)
    assert max(found.values()) < 1e-4, found
