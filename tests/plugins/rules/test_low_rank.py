"""Task vectors as factors: everything that is computed from the factors equals what their product gives."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mergd.plugins.rules._directions import Directions, leading_directions, low_rank_directions
from mergd.plugins.rules.interface import LowRank
from mergd.plugins.rules.opcm import Accumulator
from mergd.state.records import Counts, Weight

SHAPES = st.sampled_from([(6, 4), (4, 6), (1, 5), (3, 5, 4), (5, 3, 2, 2), (4, 2, 3, 2, 2)])


@st.composite
def factors(draw: st.DrawFn) -> LowRank:
    zero = LowRank.zero(draw(SHAPES))
    rank, generator = draw(st.integers(0, 3)), torch.Generator().manual_seed(draw(st.integers(0, 99)))
    B = torch.randn(*zero.B.shape[:-1], rank, generator=generator)
    A = torch.randn(*zero.A.shape[:-2], rank, zero.A.shape[-1], generator=generator)
    return LowRank(B, A, zero.shape)


def filled(shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(7))


@given(factors())
def test_the_norm_is_that_of_the_product(D: LowRank) -> None:
    assert D.norm() == pytest.approx(float(D.dense().double().norm()), rel=1e-6, abs=1e-6)


@given(factors())
def test_the_inner_product_is_that_of_the_product(D: LowRank) -> None:
    other = filled(D.shape)
    expected = float((D.dense().double() * other).sum())
    assert D.dot(other) == pytest.approx(expected, rel=1e-5, abs=1e-4)


@given(factors(), st.sampled_from([1.0, 0.5, -2.0]), st.sampled_from([torch.float32, torch.float64]))
def test_it_is_added_as_the_product_is_and_leaves_the_other_alone(D: LowRank, share: float, dtype: torch.dtype) -> None:
    other = filled(D.shape).to(dtype)
    found = D.added_to(other, share)
    torch.testing.assert_close(found, other + share * D.to(dtype).dense(), rtol=1e-5, atol=1e-5)
    assert torch.equal(other, filled(D.shape).to(dtype))


@given(factors(), st.data())
def test_rows_are_the_products_rows(D: LowRank, data: st.DataObject) -> None:
    first = data.draw(st.integers(0, D.shape[0] - 1))
    last = data.draw(st.integers(first + 1, D.shape[0]))
    torch.testing.assert_close(D.rows(first, last).dense(), D.dense()[first:last])


# --------------------------------------------------------------------------------- the accumulator of few adapters


def of_rank(m: int, n: int, rank: int, seed: int = 0) -> LowRank:
    generator = torch.Generator().manual_seed(seed)
    return LowRank(torch.randn(m, rank, generator=generator), torch.randn(rank, n, generator=generator), (m, n))


@pytest.mark.parametrize(("m", "n"), [(256, 256), (300, 160), (160, 300)])
@pytest.mark.parametrize("rank", [1, 3, 12, 16])
@pytest.mark.parametrize("alpha", [0.2, 0.5, 0.9])
def test_a_sketch_finds_the_directions_of_few(m: int, n: int, rank: int, alpha: float) -> None:
    A = of_rank(m, n, rank).dense()
    found, expected = low_rank_directions(A, alpha), leading_directions(A, alpha)
    assert found is not None
    assert found.r == expected.r
    assert found.margin == pytest.approx(expected.margin, abs=1e-6)
    for ours, theirs in ((found.U, expected.U), (found.V, expected.V)):
        assert ours.shape == theirs.shape
        torch.testing.assert_close(ours @ ours.T, theirs @ theirs.T, atol=1e-5, rtol=0)


@pytest.mark.parametrize("shape", [(256, 256), (40, 30), (64, 4000)])
def test_a_sketch_leaves_what_has_many_directions(shape: tuple[int, int]) -> None:
    assert low_rank_directions(filled(shape), 0.5) is None


def test_a_sketch_does_not_overlook_one_faint_direction() -> None:
    A = of_rank(256, 256, 4).dense()
    faint = of_rank(256, 256, 60, seed=9).dense()
    assert low_rank_directions(A + 1e-4 * faint, 0.5) is None


def test_a_stream_of_adapters_is_never_decomposed_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    def whole(A: Tensor, alpha: float) -> Directions:
        raise AssertionError("decomposed")

    monkeypatch.setattr("mergd.plugins.rules.opcm.leading_directions", whole)
    from mergd.plugins.rules.interface import Update

    w, statistic = Weight("w", (256, 320), "matrix"), Accumulator(0.5, "block")
    kept = {"accumulator": torch.zeros(w.shape)}
    for seed in range(8):
        kept = dict(statistic.fold(kept, Update(of_rank(256, 320, 4, seed)), w, Counts(seed, seed), {}).slots)
    with pytest.raises(AssertionError, match="decomposed"):
        statistic.fold(kept, Update(filled(w.shape)), w, Counts(8, 8.0), {})
