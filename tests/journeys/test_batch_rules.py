"""`mergd remerge --rule NAME` for each batch rule: what is published is its authors' method on the same checkpoints."""

from importlib import import_module
from pathlib import Path

import pytest
import torch
from references.interface import Checkpoints
from support.merges import NO_LIMITS, make_merge
from support.models import task_vector

from mergd.daemon.requests import Remerge


@pytest.mark.parametrize("rule", ["pcb", "iso_cts", "consensus_ta", "doge", "karcher"])
def test_what_is_published_is_the_authors_method(tmp_path: Path, rule: str) -> None:
    merge = make_merge(tmp_path, limits=NO_LIMITS, rule="average")
    for name in "abc":
        merge.drop(name, ord(name))
    merge.fold_all()
    with merge.loop() as loop:
        loop.ask(Remerge(rule=rule))
        kinds = {w.name: w.kind for w in loop._work.worker.merge.base.weights}
    taus = [task_vector(merge.fine_tuned(ord(name)), merge.model) for name in "abc"]
    base = {name: merge.model[name].double() for name in kinds}
    expected = import_module(f"references.{rule}").merge(Checkpoints(taus, kinds, base=base))
    found = task_vector(merge.published(), merge.model)
    for name in kinds:
        assert torch.allclose(found[name].double(), expected[name], atol=2e-6, rtol=1e-4), name
