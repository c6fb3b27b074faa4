"""OPCM against the published recurrence, its laws, and the failure cases of other implementations."""

from math import inf, nan, prod
from operator import mul
from typing import get_args

import pytest
import torch
from contracts.streaming import ONE, Stream, empty_slots, fold_once, norm, relative_error
from hypothesis import given, settings
from hypothesis import strategies as st
from references import opcm_published
from torch import Tensor

from mergd.plugins.rules._directions import split_margin, split_rank
from mergd.plugins.rules._sums import adaptive_scale
from mergd.plugins.rules.interface import Update
from mergd.plugins.rules.opcm import Accumulator, Opcm, Variant
from mergd.state.records import Totals, Weight, WeightKind

VARIANTS: tuple[Variant, ...] = get_args(Variant)
DIAGONAL: tuple[Variant, ...] = ("block_diagonal", "paper")
ORTHOGONAL: tuple[Variant, ...] = ("orthogonal", *DIAGONAL)
LEADING: tuple[Variant, ...] = ("block", "orthogonal")  # lean on no single direction
FOLDS = 9
MANY_ROWS = 1030  # more than are in float64 at a time

modest = settings(deadline=None, max_examples=25)
seeds = st.integers(0, 2**32 - 1)
sides = st.integers(1, 8)

each_variant = pytest.mark.parametrize("variant", VARIANTS)


def gaussian(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def matrix(*shape: int, name: str = "weight", kind: WeightKind = "matrix") -> Weight:
    return Weight(name, shape, kind)


FULL_RANK = (
    matrix(MANY_ROWS, 6, name="tall"),
    matrix(8, 20, name="wide"),
    matrix(16, 16, name="square"),
    matrix(3, 12, 7, name="batch"),
    matrix(6, 9, name="untouched"),
    matrix(16, name="bias", kind="other"),
    matrix(30, 8, name="lookup", kind="lookup"),
)
DEFICIENT = (matrix(20, 14, name="low_rank"), matrix(10, 12, name="late"))
FIRST_CHANGE_OF_LATE = 3  # 0-based: the 4th checkpoint


def task_vector(w: Weight, t: int) -> Tensor:
    """Return checkpoint t's task vector for one weight: a part that all share, and a part of its own, float32."""
    seed = sum(map(ord, w.name))
    if w.name == "untouched" or (w.name == "late" and t < FIRST_CHANGE_OF_LATE):
        return torch.zeros(w.shape)
    if w.name == "low_rank":
        return 1e-3 * gaussian(w.shape[0], 2, seed=seed + t) @ gaussian(2, w.shape[1], seed=-seed - t)
    columns = 1.0 / torch.arange(1, w.shape[-1] + 1)  # so that the spectrum is not flat
    return 1e-3 * (gaussian(*w.shape, seed=seed) + gaussian(*w.shape, seed=seed * 1000 + t)) * columns


def task_vectors(weights: tuple[Weight, ...], t: int) -> dict[str, Tensor]:
    return {w.name: task_vector(w, t) for w in weights}


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 0.9])
@each_variant
def test_every_fold_equals_the_published_recurrence(variant: Variant, alpha: float) -> None:
    # A rank-deficient accumulator has arbitrary singular vectors in its null space. The diagonal variants of the
    # reference use those too, so that its result there is an accident: they are not compared on such weights.
    weights = FULL_RANK + DEFICIENT if variant in LEADING else FULL_RANK
    base = {w.name: gaussian(*w.shape, seed=len(w.name)).double() for w in weights}
    taus = [task_vectors(weights, t) for t in range(FOLDS)]
    expected = opcm_published.published_task_vectors(
        base,
        [{name: base[name] + tau.double() for name, tau in taus[t].items()} for t in range(FOLDS)],
        {w.name for w in weights if w.kind == "matrix"},
        alpha,
        variant,
    )
    stream = Stream(Opcm(alpha, variant), weights)
    for t in range(FOLDS):
        stream.fold(taus[t])
        errors = {name: relative_error(found, expected[t][name]) for name, found in stream.published().items()}
        assert max(errors.values()) < 1e-5, (t, errors)


@each_variant
def test_alpha_1_protects_everything(variant: Variant) -> None:
    stream = Stream(Opcm(1.0, variant), FULL_RANK + DEFICIENT)
    kept = {w.name: torch.zeros(w.shape, dtype=torch.float64) for w in stream.weights}
    for t in range(FOLDS):
        tau = task_vectors(stream.weights, t)
        stream.fold(tau)
        for w in stream.weights:
            A, D = kept[w.name], tau[w.name].double()
            kept[w.name] = A + (outside(A, D, variant) if w.kind == "matrix" else D)
    for w in stream.weights:
        assert relative_error(stream.readouts[w.name], kept[w.name]) < 1e-5, w.name


def outside(A: Tensor, D: Tensor, variant: Variant) -> Tensor:
    """Return what of D (..., m, n) lies outside the column space and (`paper`: and also) the row space of A."""
    inverse: Tensor = torch.linalg.pinv(A, rtol=1e-5)
    columns, rows = A @ inverse, inverse @ A  # the two orthogonal projections
    return D - columns @ D - D @ rows + columns @ D @ rows if variant == "paper" else D - columns @ D @ rows


@pytest.mark.parametrize(
    ("S", "alpha", "rank"),
    [
        pytest.param([], 0.5, 0, id="no singular value"),
        pytest.param([0, 0], 0.5, 0, id="zero accumulator"),
        pytest.param([0, 0], 1, 0, id="zero accumulator, everything protected"),
        pytest.param([nan, nan], 0.5, 0, id="non-finite accumulator"),
        pytest.param([7], 0.5, 0, id="one direction is the first to pass, 0-based"),
        pytest.param([1, 1, 1, 1], 0, 0, id="alpha 0 protects nothing"),
        pytest.param([1, 1, 1, 1], 0.25, 1, id="equal is not above"),
        pytest.param([1, 1, 1, 1], 0.5, 2, id="half"),
        pytest.param([1, 1, 1, 1], 0.9, 3, id="all but the last"),
        pytest.param([3, 1], 0.74, 0, id="the first holds more"),
        pytest.param([3, 1], 0.75, 1, id="the first holds as much"),
        pytest.param([1, 1, 1, 1], 1, 4, id="alpha 1 protects all"),
        pytest.param([1, 1, 1e-9], 1, 2, id="alpha 1 protects no rounding noise"),
        pytest.param([1, 1, 1e-9], 0.9999999999, 1, id="rounding noise has no share"),
    ],
)
def test_split_rank_is_the_first_index_above_alpha(S: list[float], alpha: float, rank: int) -> None:
    assert split_rank(torch.tensor(S, dtype=torch.float64), alpha) == rank


# ---------------------------------------------------------------------------------------------------------------- laws


@modest
@given(m=sides, n=sides, seed=seeds, alpha=st.floats(0, 1), variant=st.sampled_from(VARIANTS))
def test_the_first_fold_gives_the_checkpoint_back(m: int, n: int, seed: int, alpha: float, variant: Variant) -> None:
    stream = Stream(Opcm(alpha, variant), (matrix(m, n), matrix(n, name="bias", kind="other")))
    tau = {"weight": gaussian(m, n, seed=seed), "bias": gaussian(n, seed=seed + 1)}
    stream.fold(tau)
    assert stream.scale == 1
    assert all(torch.equal(stream.published()[name], tau[name].double()) for name in tau)


@modest
@given(m=sides, n=sides, seed=seeds, share=st.floats(0.1, 1), variant=st.sampled_from(VARIANTS))
def test_the_published_norm_is_the_mean_norm(m: int, n: int, seed: int, share: float, variant: Variant) -> None:
    stream = Stream(Opcm(0.5, variant), (matrix(m, n), matrix(n, name="bias", kind="other")))
    shares, norms = (share, 1.0, 2.0), []
    for t in range(3):
        tau = {"weight": gaussian(m, n, seed=seed + t), "bias": gaussian(n, seed=seed - t)}
        stream.fold(tau, shares[t])
        norms.append(norm(tau.values()))
        mean = sum(map(mul, shares, norms)) / sum(shares[: t + 1])
        assert norm(stream.published().values()) == pytest.approx(mean, rel=1e-6)


@modest
@given(m=sides, n=sides, seed=seeds, power=st.integers(-20, 20), variant=st.sampled_from(VARIANTS))
def test_scaled_inputs_give_a_scaled_output(m: int, n: int, seed: int, power: int, variant: Variant) -> None:
    c = 2.0**power  # a power of two adds no rounding of its own, which could move a split rank
    plain, scaled = (Stream(Opcm(0.5, variant), (matrix(m, n),)) for _ in range(2))
    for t in range(3):
        plain.fold({"weight": gaussian(m, n, seed=seed + t)})
        scaled.fold({"weight": c * gaussian(m, n, seed=seed + t)})
    assert relative_error(scaled.published()["weight"], c * plain.published()["weight"]) < 1e-6


@modest
@given(m=sides, n=sides, seed=seeds, alpha=st.floats(0, 1), variant=st.sampled_from(ORTHOGONAL))
def test_what_is_kept_is_orthogonal_to_the_accumulator(
    m: int, n: int, seed: int, alpha: float, variant: Variant
) -> None:
    A, D = gaussian(m, n, seed=seed).double(), gaussian(m, n, seed=seed + 1)
    after = fold_once(Accumulator(alpha, variant), matrix(m, n), {"accumulator": A}, D).slots["accumulator"]
    assert float((A * (after - A)).sum()) == pytest.approx(0, abs=1e-5 * float(A.norm() * D.norm()))
    assert float(after.norm()) ** 2 == pytest.approx(float(A.norm()) ** 2 + float((after - A).norm()) ** 2, rel=1e-4)


@pytest.mark.parametrize("variant", ORTHOGONAL)
@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("weights", [FULL_RANK, FULL_RANK + DEFICIENT], ids=["full rank", "also deficient"])
def test_squared_norms_add_up_over_a_whole_stream(weights: tuple[Weight, ...], alpha: float, variant: Variant) -> None:
    stream = Stream(Opcm(alpha, variant), tuple(w for w in weights if w.kind == "matrix"))
    before = {w.name: torch.zeros(w.shape, dtype=torch.float64) for w in stream.weights}
    for t in range(FOLDS):
        stream.fold(task_vectors(stream.weights, t))
        for name, A in before.items():
            after = stream.readouts[name].double()
            expected = float(A.square().sum() + (after - A).square().sum())
            assert float(after.square().sum()) == pytest.approx(expected, rel=2e-6), (name, t)
            before[name] = after


def test_the_tail_is_all_that_orthogonal_takes_beyond_the_block() -> None:
    A, D = gaussian(9, 6, seed=1), gaussian(9, 6, seed=2)
    block, orthogonal = (
        fold_once(Accumulator(0.5, variant), matrix(9, 6), {"accumulator": A}, D).slots["accumulator"].double()
        for variant in LEADING
    )
    U, S, Vh = torch.linalg.svd(A.double(), full_matrices=False)
    r = split_rank(S, 0.5)
    tail = U[:, r:] * S[r:] @ Vh[r:]
    taken = block - orthogonal
    assert relative_error(taken, tail * (taken * tail).sum() / tail.square().sum()) < 1e-5
    assert float(taken.norm()) > 1e-2 * float(D.norm())


@pytest.mark.parametrize(
    ("S", "alpha", "margin"),
    [
        pytest.param([1, 1, 1, 1], 0.5, 0.0, id="on the edge"),
        pytest.param([1, 1, 1, 1], 0.6, 0.1, id="between"),
        pytest.param([3, 1], 0.5, 0.25, id="below the first"),
        pytest.param([3, 1], 1, 0.25, id="alpha 1: the smallest direction's share"),
        pytest.param([0, 0], 0.5, 0.0, id="nothing there"),
        pytest.param([], 0.5, 0.0, id="no singular value"),
    ],
)
def test_the_margin_is_the_distance_to_the_next_split(S: list[float], alpha: float, margin: float) -> None:
    assert split_margin(torch.tensor(S, dtype=torch.float64), alpha) == pytest.approx(margin)


@each_variant
@pytest.mark.parametrize("alpha", [0.5, 1.0])
def test_a_fold_tells_the_least_margin_of_its_matrices(alpha: float, variant: Variant) -> None:
    statistic, w = Accumulator(alpha, variant), matrix(3, 6, 4)
    A = gaussian(3, 6, 4, seed=1).double()
    A[2] = 0  # nothing is protected there: no margin
    margins = [split_margin(torch.linalg.svdvals(one), alpha) for one in A[:2]]
    assert fold_once(statistic, w, {"accumulator": A}, gaussian(3, 6, 4, seed=2)).margin == pytest.approx(min(margins))
    assert fold_once(statistic, w, empty_slots(statistic, w), gaussian(3, 6, 4, seed=2)).margin == 0


@modest
@given(m=st.integers(2, 8), n=st.integers(2, 8), seed=seeds, data=st.data())
def test_block_removes_exactly_the_leading_block(m: int, n: int, seed: int, data: st.DataObject) -> None:
    k = min(m, n)
    r = data.draw(st.integers(0, k - 1), label="split rank")
    U, V = (torch.linalg.qr(gaussian(side, k, seed=seed + side).double()).Q for side in (m, n))
    S = 0.6 ** torch.arange(k)  # well apart, so that each direction is well defined
    share = torch.cat([torch.zeros(1), S.cumsum(0) / S.sum()])
    alpha = float(share[r] + share[r + 1]) / 2  # between the shares of r and of r + 1 directions
    A, D = (U * S @ V.T).float(), gaussian(m, n, seed=seed - 1)

    folded = fold_once(Accumulator(alpha, "block"), matrix(m, n), {"accumulator": A}, D)

    U_r, V_r = U[:, :r], V[:, :r]
    removed = D.double() - (folded.slots["accumulator"].double() - A.double())
    assert folded.split_rank == r
    torch.testing.assert_close(removed, U_r @ (U_r.T @ D.double() @ V_r) @ V_r.T, atol=1e-5, rtol=0)
    assert folded.removed == pytest.approx(float(removed.norm()) ** 2, rel=1e-4, abs=1e-6)


@modest
@given(m=sides, n=sides, seed=seeds, share=st.floats(0.1, 1), variant=st.sampled_from(VARIANTS))
def test_a_share_weighs_what_is_kept(m: int, n: int, seed: int, share: float, variant: Variant) -> None:
    statistic, w, D = Accumulator(0.5, variant), matrix(m, n), gaussian(m, n, seed=seed + 1)
    kept = fold_once(statistic, w, empty_slots(statistic, w), gaussian(m, n, seed=seed)).slots
    once, often = (fold_once(statistic, w, kept, D, s).slots["accumulator"] - kept["accumulator"] for s in (1, share))
    torch.testing.assert_close(often, share * once, atol=1e-5, rtol=1e-5)


@each_variant
@pytest.mark.parametrize("alpha", [0.5, 1.0])
@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (3, 6, 4), (MANY_ROWS, 3)])
def test_what_was_prepared_changes_no_byte(shape: tuple[int, ...], alpha: float, variant: Variant) -> None:
    statistic, w = Accumulator(alpha, variant), matrix(*shape)
    kept = fold_once(statistic, w, empty_slots(statistic, w), gaussian(*shape, seed=1)).slots
    update = Update(gaussian(*shape, seed=2))
    ready = statistic.fold(kept, update, w, ONE, statistic.prepare(kept, w))
    fresh = statistic.fold(kept, update, w, ONE, {})
    assert torch.equal(ready.slots["accumulator"], fresh.slots["accumulator"])
    assert (ready.split_rank, ready.removed) == (fresh.split_rank, fresh.removed)


@each_variant
def test_a_fold_leaves_its_inputs_alone(variant: Variant) -> None:
    statistic, w = Accumulator(0.5, variant), matrix(6, 4)
    kept = fold_once(statistic, w, empty_slots(statistic, w), gaussian(6, 4, seed=1)).slots
    before, D = kept["accumulator"].clone(), gaussian(6, 4, seed=2)
    fold_once(statistic, w, kept, D)
    assert torch.equal(kept["accumulator"], before)
    assert torch.equal(D, gaussian(6, 4, seed=2))


@each_variant
@pytest.mark.parametrize("cut", [1, 2, 3])
def test_blocks_of_rows_of_a_batch_fold_as_the_whole_does(cut: int, variant: Variant) -> None:
    statistic, w = Accumulator(0.5, variant), matrix(5, 6, 4)
    assert statistic.rowwise(w)
    kept = fold_once(statistic, w, empty_slots(statistic, w), gaussian(5, 6, 4, seed=1)).slots["accumulator"]
    D = gaussian(5, 6, 4, seed=2)
    whole = fold_once(statistic, w, {"accumulator": kept}, D)
    parts = [
        fold_once(statistic, w, {"accumulator": rows}, news)
        for rows, news in zip(torch.split(kept, cut), torch.split(D, cut), strict=True)
    ]
    found = torch.cat([part.slots["accumulator"] for part in parts])
    torch.testing.assert_close(found, whole.slots["accumulator"], atol=1e-6, rtol=1e-6)
    assert sum(part.removed for part in parts) == pytest.approx(whole.removed, rel=1e-6)


def test_a_single_matrix_is_never_cut() -> None:
    assert not Accumulator(0.5, "block").rowwise(matrix(6, 4))


# ---------------------------------------------------------- measured failure cases of existing code (docs of the rules)


@each_variant
def test_case_a_weight_no_earlier_checkpoint_changed(variant: Variant) -> None:
    weights = FULL_RANK + DEFICIENT
    (late,) = (w for w in weights if w.name == "late")
    stream = Stream(Opcm(0.5, variant), weights)
    for t in range(FIRST_CHANGE_OF_LATE + 1):
        stream.fold(task_vectors(weights, t))
    whole = stream.scale * task_vector(late, FIRST_CHANGE_OF_LATE).double()
    assert torch.equal(stream.published()["late"], whole)


@each_variant
def test_case_first_checkpoint_equals_the_base(variant: Variant) -> None:
    weights = FULL_RANK
    stream = Stream(Opcm(0.5, variant), weights)
    stream.fold({w.name: torch.zeros(w.shape) for w in weights})
    assert (stream.scale, norm(stream.published().values())) == (1, 0)
    assert stream.totals.folded == 1

    news = task_vectors(weights, 1)
    stream.fold(news)
    assert stream.scale == pytest.approx(1 / 2)  # its norm is twice the mean of 0 and itself
    for name, found in stream.published().items():
        assert relative_error(found, news[name].double() / 2) < 1e-12


@pytest.mark.parametrize("mean", [0.0, 1.0, 1e-320, inf, nan])
@pytest.mark.parametrize("readout", [0.0, 1.0, 1e-320, inf, nan])
def test_case_zero_and_non_finite_norms_never_poison_the_scale(mean: float, readout: float) -> None:
    scale = adaptive_scale(mean, readout)
    assert 0 < scale < inf
    assert Opcm().scale(Totals(1, 1.0, mean, readout)) == scale
    assert scale == (mean / readout if mean / (readout or nan) in (1.0, 1e-320) else 1)


@each_variant
@pytest.mark.parametrize("shape", [(3, 6, 4), (2, 2, 4, 6)])
def test_case_fused_experts_are_a_batch_of_matrices(shape: tuple[int, ...], variant: Variant) -> None:
    statistic, w, one = Accumulator(0.5, variant), matrix(*shape), matrix(*shape[-2:])
    kept, D = empty_slots(statistic, w)["accumulator"] + gaussian(*shape, seed=1), gaussian(*shape, seed=2)
    found = fold_once(statistic, w, {"accumulator": kept}, D)
    each = [
        fold_once(statistic, one, {"accumulator": A}, news)
        for A, news in zip(kept.flatten(0, -3), D.flatten(0, -3), strict=True)
    ]
    expected = torch.stack([folded.slots["accumulator"] for folded in each]).reshape(shape)
    torch.testing.assert_close(found.slots["accumulator"], expected, atol=1e-6, rtol=1e-6)
    assert found.split_rank == sum(folded.split_rank for folded in each) / prod(shape[:-2])


def test_case_flat_parameter_vector_for_the_norm() -> None:
    totals, norms = Totals(), [4096.0] + [1e-4] * 1000  # a float32 sum loses every small one
    for one in norms:
        totals = totals.with_checkpoint(one, 1.0, 0.0)
    assert totals.mean_norm == pytest.approx(sum(norms) / len(norms), rel=1e-12)
    assert adaptive_scale(1 + 1e-12, 1) == 1 + 1e-12

    A, D = torch.diag(torch.tensor([1.0, 1e-3])), torch.tensor([[4096.0, 0.5], [0.5, 0.0]])
    folded = fold_once(Accumulator(0.9999, "paper"), matrix(2, 2), {"accumulator": A.double()}, D)
    assert folded.split_rank == 1
    assert folded.removed == pytest.approx(2**24 + 0.5, abs=0.01)  # removed whole; float32 has no such number


@each_variant
def test_case_slots_are_never_narrower_than_float32(variant: Variant) -> None:
    specs = [spec for s in Opcm(0.5, variant).keeps(matrix(6, 4)) for spec in s.slots(matrix(6, 4)).values()]
    assert [spec.dtype for spec in specs] == ["F32" if variant in LEADING else "F64"]


@pytest.mark.parametrize("kind", ["lookup", "other"])
def test_lookups_and_what_is_no_matrix_are_only_added(kind: WeightKind) -> None:
    stream = Stream(Opcm(1.0), (matrix(6, 4, kind=kind),))
    for t in range(3):
        stream.fold({"weight": gaussian(6, 4, seed=t)})
    expected = sum((gaussian(6, 4, seed=t).double() for t in range(3)), torch.zeros(6, 4))
    assert relative_error(stream.published()["weight"] / stream.scale, expected) < 1e-6


@pytest.mark.parametrize("alpha", [-0.1, 1.1, nan, inf])
def test_alpha_outside_0_to_1_is_refused(alpha: float) -> None:
    with pytest.raises(ValueError, match="alpha"):
        Opcm(alpha)
