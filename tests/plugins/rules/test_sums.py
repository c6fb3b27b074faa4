"""Sums in float64: as exact as torch's own, and no number that is not finite gets lost in them."""

from math import inf, isnan, nan

import pytest
import torch

from mergd.plugins.rules._sums import CHUNK, finite, inner, norm, square


def drawn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (7,), (CHUNK,), (CHUNK + 1,), (3, 70_001), (2, 3, 4)], ids=str)
def test_they_are_what_float64_gives(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, y = drawn(*shape, dtype=dtype), drawn(*shape, seed=1, dtype=dtype)
    assert square(x) == pytest.approx(float((x.double() ** 2).sum()), rel=1e-13)
    assert norm(x) == pytest.approx(float(x.double().norm()), rel=1e-13)
    assert inner(x, y) == pytest.approx(float((x.double() * y.double()).sum()), rel=1e-10, abs=1e-10)


def test_a_transposed_one_is_summed_as_it_is_seen() -> None:
    x, y = drawn(300, 400), drawn(400, 300, seed=1)
    assert inner(x.T, y) == pytest.approx(float((x.T.double() * y).sum()))


def test_what_float32_cannot_square_is_no_infinity() -> None:
    assert square(torch.full((3,), 1e30)) == pytest.approx(3e60)


@pytest.mark.parametrize("bad", [nan, inf, -inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_what_is_not_finite_shows(bad: float, dtype: torch.dtype) -> None:
    x = drawn(3, CHUNK, dtype=dtype)
    assert finite(x)
    x[1, 5] = bad
    assert not finite(x)
    assert isnan(square(x)) or square(x) == inf


def test_nothing_is_finite() -> None:
    assert finite(torch.empty(0, 3))
