"""DELLA: how likely an entry is kept, and that what is kept is unbiased."""

import pytest
import torch

from mergd.plugins.rules.della import Della, keep_probability, magprune, rows_of
from mergd.state.records import Weight


def test_the_probability_grows_with_the_rank_in_the_row() -> None:
    p = keep_probability(torch.tensor([[1.0, -3, 2], [0, 0, 0]]), 0.5, 0.2)
    assert p.tolist() == [[pytest.approx(x) for x in row] for row in ((0.3, 0.7, 0.5), (0.3, 0.5, 0.7))]


def test_an_entry_alone_in_its_row_has_the_density() -> None:
    assert keep_probability(torch.ones(2, 1), 0.5, 0.2).tolist() == [[0.5], [0.5]]


def test_each_entry_is_kept_as_often_as_its_probability_says_and_rescaled() -> None:
    rows = torch.arange(1.0, 5.0).repeat(50_000, 1)
    kept = magprune(rows, 0.5, 0.3, 17, 0)
    assert (kept != 0).double().mean(0).tolist() == pytest.approx([0.2, 0.4, 0.6, 0.8], abs=0.01)
    assert kept.double().mean(0).tolist() == pytest.approx([1, 2, 3, 4], rel=0.03)


@pytest.mark.parametrize(
    ("shape", "kind", "rows"),
    [
        ((6,), "other", (1, 6)),
        ((5, 2, 3, 3), "other", (5, 18)),
        ((2, 3, 4), "matrix", (6, 4)),
        ((5, 2, 3, 3), "convolution", (5, 18)),
        ((), "other", (1, 1)),
    ],
)
def test_rows_are_those_of_matrices(shape: tuple[int, ...], kind: str, rows: tuple[int, int]) -> None:
    assert rows_of(torch.zeros(shape), Weight("w", shape, kind)).shape == rows  # type: ignore[arg-type]


@pytest.mark.parametrize(("density", "epsilon"), [(0.7, 0.31), (0.1, 0.1), (0.5, -0.1)])
def test_every_probability_lies_between_0_and_1(density: float, epsilon: float) -> None:
    with pytest.raises(ValueError, match="epsilon must be 0 or more, below density, and at most 1 - density"):
        Della(density, epsilon)
