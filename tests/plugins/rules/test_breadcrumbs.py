"""Model Breadcrumbs: which entries are of middling magnitude."""

import pytest
import torch

from mergd.plugins.rules.breadcrumbs import Breadcrumbs, middling

TEN = torch.tensor([1.0, -2, 3, -4, 5, -6, 7, -8, 9, -10])


@pytest.mark.parametrize(
    ("density", "gamma", "kept"),
    [
        (0.5, 0.2, [4, 5, 6, 7, 8]),
        (0.9, 0.1, [1, 2, 3, 4, 5, 6, 7, 8, 9]),
        (0.9, 0.3, [1, 2, 3, 4, 5, 6, 7, 8, 9]),  # fewer of the largest go, so that nine stay
        (0.7, 0.01, [4, 5, 6, 7, 8, 9, 10]),  # a hundredth of ten is none
        (1.0, 0.5, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]),
    ],
)
def test_the_largest_go_and_then_the_smallest(density: float, gamma: float, kept: list[int]) -> None:
    found = middling(TEN, density, gamma)
    assert torch.equal(found, torch.where(torch.isin(TEN.abs(), torch.tensor(kept).float()), TEN, 0.0))


def test_equal_magnitudes_stay_or_go_together() -> None:
    tau = torch.tensor([1.0, -1, 1, -1, 5, -5, 5, -5, 9, -9])
    assert middling(tau, 0.5, 0.1).tolist() == [0, 0, 0, 0, 5, -5, 5, -5, 9, -9]
    assert torch.equal(middling(tau[:4], 0.5, 0.25), tau[:4])


@pytest.mark.parametrize("shape", [(), (1,), (0, 3)])
def test_the_smallest_weights_survive(shape: tuple[int, ...]) -> None:
    assert middling(torch.ones(shape), 0.9, 0.01).shape == shape


def test_bad_shares_are_named() -> None:
    with pytest.raises(ValueError, match="density must be above 0 and at most 1"):
        Breadcrumbs(density=0.0)
    with pytest.raises(ValueError, match="gamma must be 0 or more and below 1"):
        Breadcrumbs(gamma=1.0)
