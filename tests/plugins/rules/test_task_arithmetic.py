"""Task arithmetic against lambda times the sum over all checkpoints at once."""

from math import inf, nan

import pytest
import torch
from contracts.streaming import Stream, relative_error

from mergd.plugins.rules.task_arithmetic import TaskArithmetic
from mergd.state.records import Weight

WEIGHTS = (Weight("matrix", (6, 4), "matrix"), Weight("bias", (4,), "other"), Weight("lookup", (9, 4), "lookup"))


@pytest.mark.parametrize("lambda_", [0.3, 1.0, -0.5, 0.0])
def test_each_fold_gives_lambda_times_the_sum(lambda_: float) -> None:
    generator = torch.Generator().manual_seed(0)
    taus = {w.name: torch.randn(7, *w.shape, generator=generator) for w in WEIGHTS}
    stream = Stream(TaskArithmetic(lambda_), WEIGHTS)
    for t in range(7):
        stream.fold({name: tau[t] for name, tau in taus.items()})
        for name, found in stream.published().items():
            assert relative_error(found, lambda_ * taus[name][: t + 1].double().sum(0)) < 1e-6


def test_lambda_is_the_papers_by_default() -> None:
    assert TaskArithmetic().lambda_ == 0.3


@pytest.mark.parametrize("lambda_", [nan, inf, -inf])
def test_lambda_must_be_finite(lambda_: float) -> None:
    with pytest.raises(ValueError, match="lambda"):
        TaskArithmetic(lambda_)
