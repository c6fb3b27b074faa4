"""Random numbers by seed and place, against unsigned arithmetic."""

import pytest
import torch
from references.drawing import uniform

from mergd.plugins.rules._random import CHUNK, DRAWS, draws

SEEDS = [0, 1, 2**32, 2**63 - 1, 0x123456789ABCDEF]


@pytest.mark.parametrize("seed", SEEDS)
def test_draws_are_those_of_unsigned_arithmetic(seed: int) -> None:
    count = 2 * CHUNK + 3
    assert torch.equal(draws(seed, 0, count).double() / DRAWS, uniform(seed, count))


@pytest.mark.parametrize("start", [1, CHUNK - 1, CHUNK, 2 * CHUNK + 1])
def test_a_draw_belongs_to_its_place(start: int) -> None:
    whole = draws(5, 0, 3 * CHUNK)
    assert torch.equal(draws(5, start, CHUNK - 1), whole[start : start + CHUNK - 1])


def test_the_first_draws_are_the_published_ones() -> None:
    """The generator's first outputs from state 0, and 53 of their 64 bits."""
    published = (0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F)
    assert draws(0, 0, 3).tolist() == [output >> 11 for output in published]


def test_draws_are_uniform_and_of_one_another_and_of_neighbouring_seeds_independent() -> None:
    one, other = (draws(seed, 0, 2**18).double() / DRAWS for seed in (7, 8))
    counts = torch.histc(one, bins=64, min=0, max=1)
    assert float(((counts - 4096) ** 2 / 4096).sum()) < 110  # chi squared, 63 degrees: 1 in 4,000
    for x, y in ((one[1:], one[:-1]), (one, other)):
        assert abs(float(torch.corrcoef(torch.stack([x, y]))[0, 1])) < 0.01


def test_none_are_drawn_of_nothing() -> None:
    assert draws(3, 9, 0).shape == (0,)
