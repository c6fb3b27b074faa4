"""What every batch rule must keep to, whoever wrote it: subclass BatchRuleContract, give it `rule` and `reference`."""

from collections.abc import Callable
from dataclasses import asdict
from math import isfinite

import pytest
import torch
from contracts.rule import TOTALS, bad_values_for, parameters
from contracts.streaming import relative_error
from references.interface import Checkpoints
from torch import Tensor

from mergd.plugins.rules.batch_interface import BatchRule, is_batch
from mergd.state.records import Totals, Weight

Reference = Callable[..., dict[str, Tensor]]
Checkpoint = dict[str, Tensor]

WEIGHTS = (
    Weight("tall", (26, 13), "matrix"),
    Weight("wide", (13, 26), "matrix"),
    Weight("row", (1, 7), "matrix"),
    Weight("batch", (2, 12, 14), "matrix"),
    Weight("kernel", (12, 3, 2, 2), "convolution"),
    Weight("lookup", (11, 4), "lookup"),
    Weight("bias", (6,), "other"),
    Weight("scalar", (), "other"),
    Weight("no_rows", (0, 4), "matrix"),
)
FLIPPED = 0.02  # of a weight's numbers, that a change of rounding size may drop or take in


def checkpoint(seed: int, factor: float = 0.02, rank: int | None = None) -> Checkpoint:
    """Return the task vectors of one checkpoint, float32; with a rank, those of matrices have no more than that."""
    generator = torch.Generator().manual_seed(seed)
    found = {w.name: factor * torch.randn(w.shape, generator=generator) for w in WEIGHTS}
    for w in WEIGHTS:
        if rank and w.kind == "matrix":
            A = torch.randn(*w.shape[:-2], rank, w.shape[-1], generator=generator)
            found[w.name] = found[w.name][..., :rank] @ A
    return found


BASE = checkpoint(99, 1.0)
SEVERAL = [checkpoint(seed) for seed in range(5)]
EQUAL_TO = {  # what is held against the batch method
    "one": SEVERAL[:1],
    "two": SEVERAL[:2],
    "five": SEVERAL,
    "more than directions": [checkpoint(seed) for seed in range(15)],
    "of rank 2": [checkpoint(seed, rank=2) for seed in range(3)],
    "one equals the base": [checkpoint(0, 0.0), *SEVERAL[1:3]],
}
AWKWARD = {
    "all equal the base": [checkpoint(0, 0.0)] * 3,
    "the same again": [SEVERAL[1]] * 3,
    "the same again, of rank 2": [checkpoint(1, rank=2)] * 3,
    "they cancel": [checkpoint(1), checkpoint(1, -0.02), checkpoint(2)],
    "very small": [checkpoint(seed, 1e-30) for seed in range(3)],
    "very large": [checkpoint(seed, 1e15) for seed in range(3)],
    "of very different norms": [checkpoint(1, 1e-6), checkpoint(2, 1e6), checkpoint(3)],
}


def given(taus: list[Checkpoint], shares: tuple[float, ...] = ()) -> Checkpoints:
    """Return what a reference is given."""
    wide = [{name: tensor.double() for name, tensor in tau.items()} for tau in taus]
    base = {name: tensor.double() for name, tensor in BASE.items()}
    return Checkpoints(wide, {w.name: w.kind for w in WEIGHTS}, shares, base=base)


def published(rule: BatchRule, taus: list[Checkpoint], shares: tuple[float, ...] = ()) -> Checkpoint:
    """Return the published task vectors: each weight merged by itself, times the scale."""
    shares = shares or (1.0,) * len(taus)
    scale = rule.scale(Totals(len(taus), sum(shares)))
    return {
        w.name: scale * rule.merge([tau[w.name] for tau in taus], w, shares, BASE[w.name].to(taus[0][w.name].dtype))
        for w in WEIGHTS
    }


def worst(found: Checkpoint, expected: Checkpoint) -> tuple[float, str]:
    """Return the largest relative error of a weight, and which it is."""
    return max((relative_error(found[name], expected[name]), name) for name in found)


class BatchRuleContract:
    """The cases; none may be skipped."""

    @pytest.fixture
    def rule(self) -> BatchRule:
        raise NotImplementedError

    @pytest.fixture
    def reference(self) -> Reference:
        raise NotImplementedError

    def test_a_rule_is_a_value(self, rule: BatchRule) -> None:
        assert rule == type(rule)(**asdict(rule))
        assert hash(rule) == hash(type(rule)(**asdict(rule)))

    def test_it_is_known_as_a_batch_rule_and_says_where_it_comes_from(self, rule: BatchRule) -> None:
        assert is_batch(rule)
        assert is_batch(type(rule))
        assert rule.source
        assert type(rule).__doc__

    def test_bad_parameters_raise_value_error(self, rule: BatchRule) -> None:
        for name, kind in parameters(type(rule)).items():
            for bad in (*bad_values_for(kind), *((-1,) if kind is int else ())):
                with pytest.raises(ValueError, match=name.rstrip("_")):
                    type(rule)(**{name: bad})

    @pytest.mark.parametrize("totals", TOTALS, ids=str)
    def test_no_totals_poison_the_scale(self, rule: BatchRule, totals: Totals) -> None:
        assert isfinite(rule.scale(totals))

    @pytest.mark.parametrize("case", EQUAL_TO)
    def test_it_equals_its_batch_method(self, rule: BatchRule, reference: Reference, case: str) -> None:
        expected = reference(given(EQUAL_TO[case]), **asdict(rule))
        assert worst(published(rule, EQUAL_TO[case]), expected) < (1e-5, "")

    def test_a_share_of_two_is_being_there_twice(self, rule: BatchRule, reference: Reference) -> None:
        one, two, three = SEVERAL[:3]
        found = published(rule, [one, two, three], (1.0, 2.0, 3.0))
        assert worst(found, published(rule, [one, two, two, three, three, three])) < (1e-5, "")
        assert worst(found, reference(given([one, two, three], (1.0, 2.0, 3.0)), **asdict(rule))) < (1e-5, "")

    def test_shares_need_not_be_whole_numbers(self, rule: BatchRule) -> None:
        for shares in ((0.5, 1.5, 1.0), (0.1, 0.1, 0.1), (1e-3, 1.0, 1e3)):
            found = published(rule, SEVERAL[:3], shares)
            assert all(bool(tensor.isfinite().all()) for tensor in found.values())

    def test_the_order_does_not_matter(self, rule: BatchRule) -> None:
        assert worst(published(rule, SEVERAL[::-1]), published(rule, SEVERAL)) < (1e-5, "")

    @pytest.mark.parametrize("case", AWKWARD)
    def test_whatever_is_merged_is_finite(self, rule: BatchRule, case: str) -> None:
        found = published(rule, AWKWARD[case])
        assert {name: tuple(tensor.shape) for name, tensor in found.items()} == {w.name: w.shape for w in WEIGHTS}
        assert all(bool(tensor.isfinite().all()) for tensor in found.values())

    def test_checkpoints_that_equal_the_base_leave_it_as_it_is(self, rule: BatchRule) -> None:
        found = published(rule, AWKWARD["all equal the base"])
        assert all(float(tensor.norm()) <= 1e-6 * float(BASE[name].norm()) for name, tensor in found.items())

    def test_float32_gives_what_float64_gives(self, rule: BatchRule) -> None:
        wide = [{name: tensor.double() for name, tensor in tau.items()} for tau in SEVERAL]
        found = published(rule, SEVERAL)
        assert {tensor.dtype for tensor in found.values()} == {torch.float32}
        assert worst(found, published(rule, wide)) < (1e-5, "")

    @pytest.mark.parametrize("case", ["five", "of rank 2"])
    def test_a_change_of_rounding_size_changes_little(self, rule: BatchRule, case: str) -> None:
        """Continuous rules change boundedly; those that select flip few numbers, and the others obey the bound."""
        noise = torch.Generator().manual_seed(7)
        taus = EQUAL_TO[case]
        near = [{n: t * (1 + 1e-7 * torch.randn(t.shape, generator=noise)) for n, t in tau.items()} for tau in taus]
        other = published(rule, near)
        for name, found in published(rule, taus).items():
            moved = (found - other[name]).abs() > 1e-3 * found.norm() / max(found.numel(), 1) ** 0.5
            assert float(moved.double().mean() if moved.numel() else 0) <= FLIPPED, name

    @pytest.mark.parametrize("count", [1, 5])
    def test_the_same_checkpoints_give_the_same_bytes_and_are_left_alone(self, rule: BatchRule, count: int) -> None:
        taus = [{name: tensor.clone() for name, tensor in tau.items()} for tau in SEVERAL[:count]]
        for tensor in published(rule, taus).values():
            tensor.add_(1)  # were it a view of a checkpoint, that would change too
        assert all(torch.equal(t, SEVERAL[i][name]) for i, tau in enumerate(taus) for name, t in tau.items())
        once, again = published(rule, taus), published(rule, taus)
        assert all(torch.equal(tensor, again[name]) for name, tensor in once.items())

    def test_the_base_is_read_where_the_rule_says_so(self, rule: BatchRule) -> None:
        for w in WEIGHTS[:2]:
            taus = [tau[w.name] for tau in SEVERAL]
            merged = [rule.merge(taus, w, (1.0,) * 5, base) for base in (BASE[w.name], 2 * BASE[w.name].flip(0))]
            assert torch.equal(*merged) != rule.needs_base
