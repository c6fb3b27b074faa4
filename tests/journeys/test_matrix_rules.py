"""The matrix rules on the whole way: what the daemon publishes is the batch method, with adapters and without one again."""

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from references.interface import Checkpoints
from support.merges import NO_LIMITS, Sandbox, make_merge
from support.models import Model, drop_adapter, load_model, tiny_base, weight_errors

from mergd.daemon.requests import Remove

RULES: dict[str, dict[str, Any]] = {
    "iso_c": {},
    "tsvm": {},
    "wudi": {"lr": 0.02, "step": "relative"},
    "gram": {},
    "ace": {},
    "null_filter": {"rank": 2},
}
BY_SUBTRACTION = {"iso_c", "wudi", "gram", "ace"}


def folded(root: Path, rule: str, names: str = "abc") -> Sandbox:
    """Return a merge that has folded fine-tunes of these names, of a model with fused experts."""
    base = tiny_base() | {"experts.weight": torch.randn(4, 6, 5, generator=torch.Generator().manual_seed(9))}
    parameters = RULES[rule]
    merge = make_merge(root, base, rule=rule, parameters=parameters, limits=NO_LIMITS)
    for name in names:
        merge.drop(name, ord(name))
    merge.fold_all()
    return merge


def expected(merge: Sandbox, rule: str, models: list[Model]) -> Model:
    """Return what the reference publishes, float64."""
    floating = [name for name, tensor in merge.model.items() if tensor.is_floating_point()]
    kinds = {name: "matrix" if merge.model[name].ndim > 1 and "embed" not in name else "other" for name in floating}
    taus = [{n: model.get(n, merge.model[n]).double() - merge.model[n].double() for n in floating} for model in models]
    merged = import_module(f"references.{rule}").merge(Checkpoints(taus, kinds), **RULES[rule])
    return {name: merge.model[name].double() + merged[name] for name in floating}


def published(merge: Sandbox) -> Model:
    """Return the published weights that are no integers."""
    return {name: tensor for name, tensor in merge.published().items() if tensor.is_floating_point()}


@pytest.mark.parametrize("rule", RULES)
def test_what_is_published_is_the_batch_method(tmp_path: Path, rule: str) -> None:
    merge = folded(tmp_path, rule)
    models = [merge.fine_tuned(ord(name)) for name in "abc"]
    assert max(weight_errors(published(merge), expected(merge, rule, models)).values()) < 1e-6

    drop_adapter(merge.watch / "adapter")
    merge.fold_all()
    files = load_model(merge.watch / "adapter")
    B, A = (next(t for n, t in files.items() if factor in n) for factor in ("lora_B", "lora_A"))
    models.append({"layer.matrix.weight": merge.model["layer.matrix.weight"].double() + B.double() @ A.double()})
    assert max(weight_errors(published(merge), expected(merge, rule, models)).values()) < 1e-6
    assert merge.mergd("verify").code == 0


@pytest.mark.parametrize("rule", RULES)
def test_one_taken_out_leaves_the_batch_method_of_the_others(tmp_path: Path, rule: str) -> None:
    merge = folded(tmp_path, rule)
    with merge.loop() as loop:
        answer = loop.ask(Remove(checkpoint="b"))
    assert answer["how"] == ("subtraction" if rule in BY_SUBTRACTION else "replay")
    models = [merge.fine_tuned(ord(name)) for name in "ac"]
    assert max(weight_errors(published(merge), expected(merge, rule, models)).values()) < 1e-6
