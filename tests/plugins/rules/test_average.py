"""The running average against the mean over all checkpoints at once."""

import pytest
import torch
from contracts.streaming import Stream, relative_error
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mergd.plugins.rules.average import Average
from mergd.state.records import Weight

WEIGHT = Weight("weight", (6, 4), "matrix")


def task_vectors(count: int, seed: int = 0) -> Tensor:
    """Return `count` task vectors of the weight, stacked."""
    return torch.randn(count, *WEIGHT.shape, generator=torch.Generator().manual_seed(seed))


@settings(deadline=None, max_examples=25)
@given(shares=st.lists(st.floats(0.1, 10), min_size=1, max_size=8), seed=st.integers(0, 2**32 - 1))
def test_each_fold_gives_the_mean_weighted_by_share(shares: list[float], seed: int) -> None:
    stream, taus = Stream(Average(), (WEIGHT,)), task_vectors(len(shares), seed)
    for count, (tau, share) in enumerate(zip(taus, shares, strict=True), start=1):
        stream.fold({"weight": tau}, share)
        weights = torch.tensor(shares[:count], dtype=torch.float64)
        expected = torch.tensordot(weights, taus[:count].double(), dims=1) / weights.sum()
        error = (stream.published()["weight"] - expected).norm() / taus.double().norm()
        assert error < 1e-6


def test_one_checkpoint_is_published_as_it_is() -> None:
    stream, (tau,) = Stream(Average(), (WEIGHT,)), task_vectors(1)
    stream.fold({"weight": tau})
    assert torch.equal(stream.published()["weight"], tau.double())


def test_a_share_of_2_counts_as_folded_twice() -> None:
    once, twice = Stream(Average(), (WEIGHT,)), Stream(Average(), (WEIGHT,))
    first, second = task_vectors(2)
    for stream in (once, twice):
        stream.fold({"weight": first})
        stream.fold({"weight": second}, share=2.0 if stream is once else 1.0)
    twice.fold({"weight": second})
    assert relative_error(once.published()["weight"], twice.published()["weight"]) < 1e-6


def test_nothing_folded_is_the_base() -> None:
    assert Stream(Average(), (WEIGHT,)).scale == 1


def test_the_average_has_no_parameters() -> None:
    with pytest.raises(TypeError):
        Average(0.5)  # type: ignore[call-arg]
