"""Localize-and-Stitch: the largest entries of a whole checkpoint, averaged where they overlap."""

import pytest
import torch
from contracts.streaming import Stream

from mergd.plugins.rules.stitch import Stitch
from mergd.state.records import Weight

A, B = Weight("a", (5,), "other"), Weight("b", (1, 5), "matrix")


def test_what_overlaps_is_averaged_and_the_rest_is_taken_as_it_is() -> None:
    stream = Stream(Stitch(0.4), (A, B))  # four of ten, less the one that the authors lose
    stream.fold({"a": torch.tensor([9.0, 8, 7, 1, 1]), "b": torch.ones(1, 5)})
    stream.fold({"a": torch.tensor([-5.0, 1, 1, 1, 1]), "b": torch.tensor([[7.0, 1, 1, 1, -6]])})
    assert stream.published()["a"].tolist() == [2, 8, 7, 0, 0]
    assert stream.published()["b"].tolist() == [[7, 0, 0, 0, -6]]


def test_a_density_of_1_averages_everything_that_all_have() -> None:
    stream = Stream(Stitch(1.0), (A,))
    for seed in range(3):
        stream.fold({"a": torch.arange(1.0, 6.0) * (seed + 1)})
    assert stream.published()["a"].tolist() == pytest.approx([2, 4, 6, 8, 10])


def test_what_a_checkpoint_does_not_change_has_no_say() -> None:
    """Fewer entries changed than are to be kept: the threshold is 0, and all others reach it."""
    stream = Stream(Stitch(0.8), (A,))
    stream.fold({"a": torch.tensor([9.0, 8, 7, 6, 5])})
    stream.fold({"a": torch.zeros(5)})
    stream.fold({"a": torch.tensor([1.0, 0, 0, 0, 0])})
    assert stream.published()["a"].tolist() == [5, 8, 7, 0, 0]


@pytest.mark.parametrize("density", [0.0, 2.0])
def test_a_density_is_a_share_of_the_entries(density: float) -> None:
    with pytest.raises(ValueError, match="density must be above 0 and at most 1"):
        Stitch(density)
