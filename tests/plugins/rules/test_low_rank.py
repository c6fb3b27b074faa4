"""Task vectors as factors: everything that is computed from the factors equals what their product gives."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mergd.plugins.rules._directions import Directions, all_directions, leading_directions, low_rank_directions
from mergd.plugins.rules._sums import norm
from mergd.plugins.rules.interface import LowRank, TaskSum, Update
from mergd.plugins.rules.opcm import Accumulator, Variant
from mergd.state.records import Counts, Weight

STABLE: tuple[Variant, ...] = ("block", "orthogonal")  # those that lean on no single direction
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


@given(factors(), st.floats(-3, 3))
def test_the_inner_product_of_two_is_that_of_their_products(D: LowRank, factor: float) -> None:
    other = D.rows(0, D.shape[0]).times(factor)
    assert D.dot(other) == pytest.approx(factor * D.norm() ** 2, rel=1e-5, abs=1e-4)


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
@pytest.mark.parametrize("alpha", [0.2, 0.5, 0.9, 1.0])
def test_the_directions_of_factors_are_those_of_their_product(m: int, n: int, rank: int, alpha: float) -> None:
    A = of_rank(m, n, rank)
    found = low_rank_directions(A.B, A.A, alpha)
    expected = leading_directions(A.dense(), alpha) if alpha < 1 else all_directions(A.dense(), alpha)
    assert found["U"].shape == (rank, expected.r)
    assert float(found["margin"]) == pytest.approx(expected.margin, abs=1e-6)
    for basis, inside, theirs in ((found["Q"], found["U"], expected.U), (found["W"], found["V"], expected.V)):
        ours, theirs = basis.double() @ inside, theirs[:, : expected.r].double()
        torch.testing.assert_close(ours @ ours.T, theirs @ theirs.T, atol=1e-5, rtol=0)
    torch.testing.assert_close(found["Q"] @ found["C"].float() @ found["W"].T, A.dense(), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "statistic", [TaskSum(), *(Accumulator(a, v) for a in (0.3, 0.5, 1.0) for v in STABLE)], ids=repr
)
@pytest.mark.parametrize("shares", [(1, 1, 1, 1, 1, 1), (1, 0.5, 1, 0.25, 1, 1)])
def test_folds_of_factors_are_those_of_their_products(
    statistic: TaskSum | Accumulator, shares: tuple[float, ...]
) -> None:
    w = Weight("w", (256, 320), "matrix")
    (slot,) = statistic.slots(w)
    dense, kept, rank = torch.zeros(w.shape, dtype=torch.float64), LowRank.zero(w.shape), 0
    for seed, share in enumerate(shares):
        D, counts = of_rank(256, 320, 4, seed), Counts(seed, seed)
        u = Update(D.to(torch.float64), share)
        one = statistic.fold({slot: dense}, u, w, counts, {})
        other = statistic.fold_factors(kept, Update(D, share), D, w, statistic.prepare_factors(kept, w))
        dense, kept, rank = one.slots[slot], other.slot, rank + 4
        assert kept.rank == rank
        assert other.split_rank == one.split_rank
        assert other.removed == pytest.approx(one.removed, rel=1e-5)
        assert norm(kept.dense().double() - dense) <= 1e-6 * norm(dense)


def test_factors_that_change_nothing_fold_as_nothing() -> None:
    w, statistic = Weight("w", (30, 20), "matrix"), Accumulator(0.5, "block")
    none = LowRank(torch.zeros(30, 3), torch.zeros(3, 20), w.shape)  # as an adapter begins: B is zero
    first = statistic.fold_factors(
        LowRank.zero(w.shape), Update(none), none, w, statistic.prepare_factors(LowRank.zero(w.shape), w)
    )
    again = statistic.fold_factors(first.slot, Update(none), none, w, statistic.prepare_factors(first.slot, w))
    assert again.slot.rank == 6
    assert not again.slot.dense().any()
    assert again.split_rank == 0


def test_a_stream_of_adapters_is_never_decomposed_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    def whole(A: Tensor, alpha: float) -> Directions:
        raise AssertionError("decomposed")

    monkeypatch.setattr("mergd.plugins.rules.opcm.leading_directions", whole)
    w, statistic = Weight("w", (256, 320), "matrix"), Accumulator(0.5, "block")
    kept = LowRank.zero(w.shape)
    for seed in range(8):
        D = of_rank(256, 320, 4, seed)
        kept = statistic.fold_factors(kept, Update(D), D, w, statistic.prepare_factors(kept, w)).slot
    with pytest.raises(AssertionError, match="decomposed"):
        statistic.fold({"accumulator": kept.dense()}, Update(filled(w.shape)), w, Counts(8, 8.0), {})
