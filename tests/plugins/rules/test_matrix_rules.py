"""The rules that merge each matrix: their batch references beyond the defaults, their laws, and where others fail."""

from collections.abc import Sequence
from dataclasses import asdict
from importlib import import_module

import pytest
import torch
from contracts.streaming import Stream, empty_slots, fold_once, relative_error, update_of
from references.interface import Checkpoints
from torch import Tensor

from mergd.plugins.rules.ace import Ace, Covariances, heterogeneity
from mergd.plugins.rules.gram import TwoSidedGram
from mergd.plugins.rules.interface import LowRank, Rule, Slots, Statistic, Sum
from mergd.plugins.rules.iso_c import IsoC, isotropic
from mergd.plugins.rules.null_filter import Filtered, NullFilter
from mergd.plugins.rules.tsvm import Triplets, TsvM, orthogonalised
from mergd.plugins.rules.wudi import Wudi
from mergd.state.records import Counts, Totals, Weight

NAMES = {IsoC: "iso_c", TsvM: "tsvm", Wudi: "wudi", TwoSidedGram: "gram", Ace: "ace", NullFilter: "null_filter"}
DEFAULTS: list[Rule] = [rule() for rule in NAMES]
SKIPS_ZERO: list[Rule] = [TsvM(), Wudi(), Wudi("ridge"), TwoSidedGram(), Ace()]
SUMS: list[Rule] = [IsoC(), Wudi(), Wudi("ridge"), TwoSidedGram(), Ace(), Ace(threshold=0.0)]
OTHER: list[Rule] = [
    *(
        IsoC(lambda_=0.7),
        TsvM(lambda_=-0.5),
        TwoSidedGram(epsilon=0.01, long_side=1.0),
        TwoSidedGram(long_side=100.0, flatten=0),
    ),
    *(Wudi(steps=40, lr=1e-2), Wudi(lr=0.02, step="relative"), Wudi("ridge", epsilon=1.0)),
    *(Ace(threshold=0.0), Ace(threshold=0.0, fraction=1.0, epsilon=1.0), Ace(threshold=1e6), NullFilter(rank=2)),
]
SHAPES = [(12, 12), (16, 6), (6, 16), (2, 9, 5), (8, 3, 2, 2), (1, 7), (7, 1)]

each_default = pytest.mark.parametrize("rule", DEFAULTS, ids=repr)
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


def gaussian(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def weight(shape: tuple[int, ...]) -> Weight:
    return Weight("w", shape, "convolution" if len(shape) == 4 else "matrix")


def of_rank(rank: int, shape: tuple[int, ...], seed: int) -> LowRank:
    zero = LowRank.zero(shape)
    B = gaussian(*zero.B.shape[:-1], rank, seed=seed)
    return LowRank(B, gaussian(*zero.A.shape[:-2], rank, zero.A.shape[-1], seed=seed + 500), shape)


def kept_of(rule: Rule, w: Weight, news: Sequence[Tensor | LowRank], shares: Sequence[float] = ()) -> dict[Statistic, Slots]:  # fmt: skip
    kept: dict[Statistic, Slots] = {s: empty_slots(s, w) for s in rule.keeps(w)}
    for D, share in zip(news, shares or [1.0] * len(news), strict=True):
        kept = {s: fold_once(s, w, slots, D, share).slots for s, slots in kept.items()}
    return kept


def read(rule: Rule, w: Weight, news: Sequence[Tensor | LowRank], shares: Sequence[float] = ()) -> Tensor:
    """Return the published task vector of one weight."""
    counts = Counts(len(news), sum(shares) or float(len(news)))
    return rule.scale(Totals(folded=len(news))) * rule.merged(kept_of(rule, w, news, shares), w, counts).double()


def batch(rule: Rule, w: Weight, news: Sequence[Tensor | LowRank], shares: Sequence[float] = ()) -> Tensor:
    """Return what its reference makes of the same."""
    taus = [{"w": (D.dense() if isinstance(D, LowRank) else D).double()} for D in news]
    merge = import_module(f"references.{NAMES[type(rule)]}").merge
    merged: Tensor = merge(Checkpoints(taus, {"w": w.kind}, shares), **asdict(rule))["w"]
    return merged


# ------------------------------------------------------------------------------------------------- the batch reference


@pytest.mark.parametrize("rule", OTHER, ids=repr)
@each_shape
def test_other_parameters_equal_the_batch_method_too(rule: Rule, shape: tuple[int, ...]) -> None:
    w, news = weight(shape), [(1 + t) * gaussian(*shape, seed=t) for t in range(5)]
    assert relative_error(read(rule, w, news), batch(rule, w, news)) < 1e-5


@each_default
@pytest.mark.parametrize("shares", [(1.0, 0.5, 2.0), (0.25, 0.25, 0.25), (3.0, 1.0, 1.5)], ids=str)
def test_any_shares_equal_the_batch_method(rule: Rule, shares: tuple[float, ...]) -> None:
    w, news = weight((10, 8)), [gaussian(10, 8, seed=t) for t in range(3)]
    assert relative_error(read(rule, w, news, shares), batch(rule, w, news, shares)) < 1e-5


@each_default
@each_shape
def test_adapters_equal_the_batch_method(rule: Rule, shape: tuple[int, ...]) -> None:
    w, news = weight(shape), [of_rank(2, shape, seed=t) for t in range(4)]
    assert relative_error(read(rule, w, news), batch(rule, w, news)) < 1e-5


@pytest.mark.parametrize("rule", SUMS, ids=repr)
@each_shape
def test_one_taken_out_leaves_the_batch_method_of_the_others(rule: Rule, shape: tuple[int, ...]) -> None:
    w, news = weight(shape), [gaussian(*shape, seed=t) for t in range(4)]
    kept = kept_of(rule, w, news)
    for statistic, slots in kept.items():
        assert isinstance(statistic, Sum)
        kept[statistic] = statistic.remove(slots, update_of(statistic, w, news[1]), w).slots
    found = rule.scale(Totals(folded=3)) * rule.merged(kept, w, Counts(3, 3.0)).double()
    assert relative_error(found, batch(rule, w, [news[0], *news[2:]])) < 1e-5


# ------------------------------------------------------------------------------------------------------ laws of each rule


@each_shape
def test_iso_c_makes_all_directions_count_alike(shape: tuple[int, ...]) -> None:
    w, news = weight(shape), [gaussian(*shape, seed=t) for t in range(3)]
    merged, total = read(IsoC(), w, news), sum(news, torch.zeros(shape)).double()
    if w.kind == "convolution":
        merged, total = merged.flatten(1), total.flatten(1)
    S, before = torch.linalg.svdvals(merged), torch.linalg.svdvals(total)
    torch.testing.assert_close(S, before.mean(-1, keepdim=True).expand_as(S), rtol=1e-5, atol=0)


def test_iso_c_flattens_two_checkpoints_whatever_they_count() -> None:
    """A share that all have scales the sum, and tells nothing of how many there are."""
    w, news = weight((9, 5)), [gaussian(9, 5, seed=t) for t in range(2)]
    stream = Stream(IsoC(), (w,))
    for tau in news:
        stream.fold({w.name: tau}, 0.5)
    assert relative_error(stream.published()[w.name], read(IsoC(), w, news) / 2) < 1e-6


@pytest.mark.parametrize("rule", [IsoC(), TsvM(), Wudi(), Wudi(step="relative", lr=0.02), NullFilter()], ids=repr)
@each_shape
def test_one_checkpoint_is_given_back(rule: Rule, shape: tuple[int, ...]) -> None:
    D = gaussian(*shape, seed=1)
    assert relative_error(read(rule, weight(shape), [D]), D) < 1e-6


@pytest.mark.parametrize("rule", [Wudi(), TwoSidedGram(), Wudi("ridge"), TsvM()], ids=repr)
def test_adapters_that_share_nothing_do_not_disturb_each_other(rule: Rule) -> None:
    w, corner = weight((12, 12)), torch.zeros(12, 12)
    news = [corner.clone(), corner.clone()]
    news[0][:6, :6], news[1][6:, 6:] = gaussian(6, 6, seed=1), gaussian(6, 6, seed=2)
    merged = read(rule, w, news)
    assert float(merged[:6, 6:].norm() + merged[6:, :6].norm()) < 1e-6
    if isinstance(rule, TsvM) or rule == Wudi():
        assert relative_error(merged, sum(news, corner)) < 1e-5


def test_wudi_steps_down_the_interference() -> None:
    loss = import_module("references.wudi").loss
    w, news = weight((12, 10)), [1e-3 * gaussian(12, 10, seed=t) for t in range(4)]
    taus, start = [D.double() for D in news], sum(news, torch.zeros(12, 10)).double()
    found = [float(loss(X, taus, [1.0] * 4)) for X in (start, read(Wudi(), w, news), read(Wudi("ridge", epsilon=1e-6), w, news))]  # fmt: skip
    assert found == sorted(found, reverse=True)
    assert found[1] < 0.5 * found[0]


def test_wudi_relative_does_not_know_the_unit() -> None:
    w, news = weight((12, 10)), [gaussian(12, 10, seed=t) for t in range(4)]
    rule = Wudi(step="relative", lr=0.02)
    small = read(rule, w, [2.0**-20 * D for D in news])
    assert relative_error(small * 2.0**20, read(rule, w, news)) < 1e-6


@pytest.mark.parametrize(("shape", "sides"), [((8, 8), {8}), ((8, 33), {8}), ((33, 8), {8}), ((8, 32), {8, 32})])
def test_gram_keeps_no_side_that_is_too_long(shape: tuple[int, int], sides: set[int]) -> None:
    w = weight(shape)
    slots = {name: spec.shape for s in TwoSidedGram().keeps(w) for name, spec in s.slots(w).items()}
    grams = [s.slots(w)["gram"].shape for s in TwoSidedGram().keeps(w) if "gram" in s.slots(w)]
    assert slots["pull"] == shape
    assert {one for pair in grams for one in pair} == sides


def test_gram_is_the_same_of_the_transposed() -> None:
    news = [gaussian(9, 7, seed=t) for t in range(4)]
    found = read(TwoSidedGram(), weight((9, 7)), news)
    turned = read(TwoSidedGram(), weight((7, 9)), [D.T.contiguous() for D in news])
    assert relative_error(turned.T, found) < 1e-6


def test_gram_flattens_the_more_the_more_checkpoints_there_are() -> None:
    w, news = weight((9, 7)), [gaussian(9, 7, seed=t) for t in range(9)]
    for count in (1, 4, 9):
        plain, flat = (read(TwoSidedGram(flatten=f), w, news[:count]).double() for f in (0, 0.5))
        U, S, Vh = torch.linalg.svd(plain, full_matrices=False)
        powers = S ** (1 / count**0.5)
        assert relative_error(flat, U * powers @ Vh * (S.norm() / powers.norm())) < 1e-5


def test_gram_scales_what_was_averaged_alone() -> None:
    assert [TwoSidedGram(lambda_=1.5).scale(Totals(folded=folded)) for folded in (0, 1, 2, 9)] == [1, 1, 1.5, 1.5]


def test_gram_counts_those_that_change_a_matrix() -> None:
    w, D = weight((9, 7)), gaussian(9, 7, seed=1)
    beside = [torch.zeros(9, 7)] * 3
    rule = TwoSidedGram(lambda_=1.0)
    assert relative_error(read(rule, w, [D, *beside]), read(rule, w, [D])) < 1e-6


@pytest.mark.parametrize("shape", [(12, 12), (16, 9)])
def test_null_filter_leaves_the_answers_to_what_was_served(shape: tuple[int, int]) -> None:
    w, statistic = weight(shape), Filtered(4)
    kept = kept_of(NullFilter(4), w, [gaussian(*shape, seed=1)])[statistic]
    served = torch.linalg.svd(kept["filtered"], full_matrices=False)[2][:4].T  # the 4 inputs it answers most to
    after = fold_once(statistic, w, kept, gaussian(*shape, seed=2))
    torch.testing.assert_close(after.slots["filtered"] @ served, kept["filtered"] @ served, atol=1e-12, rtol=0)
    assert after.split_rank == 4
    assert after.removed == pytest.approx(float((gaussian(*shape, seed=2).double() @ served).square().sum()))


def test_ace_weighs_unlike_checkpoints_alike() -> None:
    """Above the threshold covariances have trace 1: a checkpoint 300 times as large does not drown the others."""
    w, news = weight((8, 6)), [gaussian(8, 6, seed=1), 300 * gaussian(8, 6, seed=2), gaussian(8, 6, seed=3)]
    slots = kept_of(Ace(), w, news)[Covariances()]
    assert heterogeneity(slots) == pytest.approx(float(sample_gamma(news)))
    assert heterogeneity(slots) > 0.3
    assert relative_error(read(Ace(), w, news), batch(Ace(), w, news)) < 1e-5
    assert relative_error(read(Ace(), w, news), batch(Ace(threshold=1e6), w, news)) > 0.1


def sample_gamma(news: Sequence[Tensor]) -> Tensor:
    logs = torch.stack([D.double().square().sum().log() for D in news])
    return logs.var() / logs.mean() ** 2


# --------------------------------------------------------------- measured failure cases of existing code (docs of the rules)


@pytest.mark.parametrize("rule", SKIPS_ZERO, ids=repr)
def test_case_a_checkpoint_that_leaves_a_matrix_alone_has_no_say(rule: Rule) -> None:
    w, news, zero = weight((10, 8)), [gaussian(10, 8, seed=t) for t in range(3)], torch.zeros(10, 8)
    with_zeros = read(rule, w, [zero, news[0], LowRank.zero((10, 8)), *news[1:], zero])
    assert relative_error(with_zeros, read(rule, w, news)) < 1e-6
    assert not read(rule, w, [zero, zero]).any()


@each_default
@each_shape
def test_an_adapter_that_leaves_a_weight_alone_writes_nothing(rule: Rule, shape: tuple[int, ...]) -> None:
    w = weight(shape)
    kept = kept_of(rule, w, [gaussian(*shape, seed=1)])
    for statistic, slots in kept.items():
        after = fold_once(statistic, w, slots, LowRank.zero(shape)).slots
        assert all(after[name] is slot for name, slot in slots.items())


@each_default
def test_case_rank_deficient_task_vectors_do_not_turn_noise_into_directions(rule: Rule) -> None:
    w, news = weight((24, 20)), [of_rank(2, (24, 20), seed=t).dense() for t in range(4)]
    noisy = [D + 1e-7 * gaussian(24, 20, seed=90 + t) for t, D in enumerate(news)]
    assert relative_error(read(rule, w, noisy), read(rule, w, news)) < 2e-4  # elsewhere 0.55 to 0.87


@pytest.mark.parametrize("rule", [TsvM(), IsoC(), TwoSidedGram(), Wudi("ridge"), Ace()], ids=repr)
def test_case_the_same_checkpoint_under_two_names(rule: Rule) -> None:
    w, D = weight((16, 12)), gaussian(16, 12, seed=1)
    noisy = [D, D + 1e-7 * gaussian(16, 12, seed=2), gaussian(16, 12, seed=3)]
    assert relative_error(read(rule, w, noisy), read(rule, w, [D, D, noisy[2]])) < 1e-3
    if rule == TsvM():  # half of the triplets each, and both halves the same: what is left of the one
        U, S, Vh = torch.linalg.svd(D.double(), full_matrices=False)
        assert relative_error(read(rule, w, [D, D]), U[:, :6] * S[:6] @ Vh[:6]) < 1e-4


def test_case_iso_c_gives_no_energy_to_null_directions() -> None:
    w, news = weight((24, 20)), [of_rank(2, (24, 20), seed=t).dense() for t in range(3)]
    S = torch.linalg.svdvals(read(IsoC(), w, news))
    assert float(S[6:].max()) < 1e-6 * float(S[0])
    assert float(S[:6].sum()) == pytest.approx(float(torch.linalg.svdvals(sum(news, torch.zeros(24, 20))).sum()))


def test_case_tsvm_with_more_checkpoints_than_directions_is_the_mean() -> None:
    w, news = weight((5, 4)), [gaussian(5, 4, seed=t) for t in range(7)]
    triplets = kept_of(TsvM(), w, news)[Triplets()]
    assert int(triplets["blocks"]) == 7
    assert relative_error(read(TsvM(), w, news), torch.stack(news).double().mean(0)) < 1e-6
    at_the_edge = read(TsvM(), w, news[:4])  # one triplet each
    assert relative_error(at_the_edge, torch.stack(news[:4]).double().mean(0)) > 0.1


def test_tsvm_holds_what_each_checkpoint_would_keep_in_batch() -> None:
    w, news = weight((12, 10)), [gaussian(12, 10, seed=t) for t in range(3)]
    triplets = kept_of(TsvM(), w, news)[Triplets()]
    for t, D in enumerate(news):
        _, S, Vh = torch.linalg.svd(D.double(), full_matrices=False)
        columns = slice(3 * t, 3 * t + 3)  # floor(10 / 3) each
        torch.testing.assert_close(triplets["S"][columns].double(), S[:3], rtol=1e-6, atol=0)
        overlap = (triplets["V"][:, columns].double().T @ Vh[:3].T).abs()
        torch.testing.assert_close(overlap, torch.eye(3, dtype=torch.float64), atol=1e-5, rtol=0)
    assert not triplets["U"][:, 9:].any()


def test_orthogonal_triplets_are_put_together_as_they_are() -> None:
    U, V = (torch.linalg.qr(gaussian(side, 4, seed=side).double()).Q for side in (9, 7))
    S = torch.tensor([4.0, 3.0, 2.0, 1.0], dtype=torch.float64)
    torch.testing.assert_close(orthogonalised(U, S, V), U * S @ V.T)


def test_isotropic_of_nothing_is_nothing() -> None:
    assert not isotropic(torch.zeros(4, 3)).any()


@pytest.mark.parametrize("rule", [*DEFAULTS, *SUMS], ids=repr)
def test_nothing_folded_reads_as_the_base(rule: Rule) -> None:
    for shape in SHAPES:
        w = weight(shape)
        assert not rule.merged({s: empty_slots(s, w) for s in rule.keeps(w)}, w, Counts(0, 0.0)).any()


@each_default
def test_what_is_no_matrix_is_the_mean(rule: Rule) -> None:
    bias = Weight("w", (6,), "other")
    stream = Stream(rule, (bias,))
    for t in range(3):
        stream.fold({"w": gaussian(6, seed=t)})
    mean = torch.stack([gaussian(6, seed=t) for t in range(3)]).double().mean(0)
    assert relative_error(stream.readouts["w"], mean) < 1e-6


def test_gram_and_wudi_read_the_same_sums() -> None:
    w = weight((8, 8))
    assert set(Wudi("ridge").keeps(w)) < set(TwoSidedGram().keeps(w))
