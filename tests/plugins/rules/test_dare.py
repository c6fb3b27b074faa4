"""DARE: what is kept is unbiased, and follows from the checkpoint alone."""

import pytest
import torch

from mergd.plugins.rules.dare import Dare, dropped_and_rescaled


@pytest.mark.parametrize("density", [0.1, 0.5, 0.9])
def test_so_many_entries_are_kept_and_their_sum_is_expected_to_be_the_same(density: float) -> None:
    kept = dropped_and_rescaled(torch.ones(1000, 300), density, 11, 0)
    assert float((kept != 0).double().mean()) == pytest.approx(density, abs=5e-3)
    assert float(kept.double().mean()) == pytest.approx(1.0, abs=2e-2)


def test_a_density_of_1_keeps_everything() -> None:
    tau = torch.randn(50, 40, generator=torch.Generator().manual_seed(0))
    assert torch.equal(dropped_and_rescaled(tau, 1.0, 3, 0), tau)


def test_other_seeds_keep_other_entries() -> None:
    one, other = (dropped_and_rescaled(torch.ones(100, 100), 0.5, seed, 0) != 0 for seed in (1, 2))
    assert float((one & other).double().mean()) == pytest.approx(0.25, abs=0.03)


@pytest.mark.parametrize("density", [0.0, -0.1, 1.1])
def test_a_density_is_a_share_of_the_entries(density: float) -> None:
    with pytest.raises(ValueError, match="density must be above 0 and at most 1"):
        Dare(density)
