"""Surveys find of the blocks of a checkpoint exactly what is to be found of all its numbers at once."""

from math import sqrt

import pytest
import torch
from contracts.streaming import survey_all
from torch import Tensor

from mergd.plugins.rules.surveys import Energy, Magnitude, Norm
from mergd.state.records import Weight

SHAPES = {"a": (40, 30), "b": (7,), "c": (), "d": (3, 5, 4), "e": (0, 4)}
WEIGHTS = {name: Weight(name, shape, "other") for name, shape in SHAPES.items()}


def checkpoint(digits: int | None = None) -> dict[str, Tensor]:
    """Return task vectors; rounded to so many digits, many of their magnitudes are equal."""
    generator = torch.Generator().manual_seed(3)
    taus = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    return taus if digits is None else {name: (tau * 10**digits).round() for name, tau in taus.items()}


def blocks_of(taus: dict[str, Tensor]) -> list[tuple[Weight, Tensor]]:
    """Return the checkpoint in blocks of rows."""
    return [
        (WEIGHTS[name], block) for name, tau in taus.items() for block in (torch.split(tau, 3) if tau.ndim else (tau,))
    ]


def descending(taus: dict[str, Tensor]) -> Tensor:
    """Return all magnitudes, the largest first."""
    return torch.cat([tau.reshape(-1) for tau in taus.values()]).abs().sort(descending=True).values


@pytest.mark.parametrize("digits", [None, 1, 0])
@pytest.mark.parametrize("more", [-1, 0, 1])
@pytest.mark.parametrize("density", [0.001, 0.05, 0.29, 0.5, 0.999, 1.0])
def test_magnitude_is_what_so_many_numbers_reach(density: float, more: int, digits: int | None) -> None:
    taus, survey = checkpoint(digits), Magnitude(density, more)
    magnitudes = descending(taus)
    n = magnitudes.numel()
    wanted = max(1, min(int(n * density) + more, n)) if density < 1 else n
    found = survey_all((survey,), blocks_of(taus))[survey]["least"]
    assert found == magnitudes[wanted - 1]
    assert found.dtype == torch.float32


@pytest.mark.parametrize("factor", [0.0, 1e-44, 1e-38, 1e30])
def test_magnitude_is_exact_at_the_ends_of_float32(factor: float) -> None:
    taus, survey = {name: tau * factor for name, tau in checkpoint().items()}, Magnitude(0.3)
    found = survey_all((survey,), blocks_of(taus))[survey]["least"]
    assert found == descending(taus)[int(0.3 * descending(taus).numel()) - 1]


def test_of_very_many_numbers_no_count_is_rounded() -> None:
    assert Magnitude(0.2).wanted(7_000_000_003) == 1_400_000_000
    assert Magnitude(1.0, more=1).wanted(7_000_000_003) == 7_000_000_003


def test_the_norm_is_that_of_all_numbers() -> None:
    found = survey_all((Norm(),), blocks_of(checkpoint()))[Norm()]["norm"]
    assert float(found) == pytest.approx(sqrt(float(descending(checkpoint()).double().square().sum())))


def test_the_energy_is_the_mean_square_of_each_weight() -> None:
    taus = checkpoint()
    found = survey_all((Energy(),), blocks_of(taus))[Energy()]
    for name in ("a", "b", "c", "d"):
        assert float(found[name]) == pytest.approx(float(taus[name].double().square().mean()))
    assert survey_all((Energy(),), [(WEIGHTS["e"], taus["e"])])[Energy()]["e"] == 0
