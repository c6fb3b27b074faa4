"""What every fold rule must keep to, whoever wrote it: subclass RuleContract, with the fixtures `rule` and `reference`.

`reference` is the method as its authors published it, in batch and in float64; it shares nothing with the rule.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict, fields, replace
from math import inf, isfinite, nan
from pathlib import Path
from random import Random
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
import torch
from contracts.streaming import (
    ONE,
    Stream,
    empty_slots,
    extra_of,
    fold_once,
    relative_error,
    rows_of,
    seed_of,
    update_of,
)
from references.interface import Checkpoints
from torch import Tensor

from mergd.plugins.rules.interface import LowRank, Rule, Statistic, Sum, prepares
from mergd.state.prepared import Preparation, Prepared, place_of
from mergd.state.records import Counts, Totals, Weight

WEIGHTS = (
    Weight("tall", (9, 4), "matrix"),
    Weight("wide", (4, 9), "matrix"),
    Weight("batch", (3, 5, 4), "matrix"),
    Weight("kernel", (6, 3, 2, 2), "convolution"),
    Weight("lookup", (11, 4), "lookup"),
    Weight("bias", (6,), "other"),
    Weight("scalar", (), "other"),
    Weight("no_rows", (0, 4), "matrix"),
)
TOTALS = [Totals(), Totals(1, 1.0), Totals(3, 2.5, 1.0, 0.0), Totals(3, 2.5, 0.0, 1.0), Totals(3, 3.0, nan, inf)]

FEW_STEPS = 30  # of a descent; what is published takes hundreds, and the journeys with it

Checkpoint = dict[str, Tensor]
Reference = Callable[..., dict[str, Tensor]]


def checkpoint(seed: int, factor: float = 1.0) -> Checkpoint:
    """Return the task vectors of one checkpoint, float32."""
    generator = torch.Generator().manual_seed(seed)
    return {w.name: factor * torch.randn(w.shape, generator=generator) for w in WEIGHTS}


def factors_of(w: Weight, rank: int) -> LowRank:
    """Return a task vector of one weight as two factors."""
    generator = torch.Generator().manual_seed(rank)
    zero = LowRank.zero(w.shape)
    B = torch.randn(*zero.B.shape[:-1], rank, generator=generator)
    A = torch.randn(*zero.A.shape[:-2], rank, zero.A.shape[-1], generator=generator)
    return LowRank(B, A, w.shape)


STREAMS = {
    "five checkpoints": [checkpoint(seed) for seed in range(5)],
    "the first equals the base": [checkpoint(0, 0.0), checkpoint(1), checkpoint(2)],
    "all equal the base": [checkpoint(0, 0.0)] * 3,
    "the same again": [checkpoint(1)] * 3,
    "they cancel": [checkpoint(1), checkpoint(1, -1.0), checkpoint(2)],
    "very small": [checkpoint(seed, 1e-30) for seed in range(3)],
    "very large": [checkpoint(seed, 1e15) for seed in range(3)],
    "of very different norms": [checkpoint(1, 1e-6), checkpoint(2, 1e6), checkpoint(3)],
}


BATCHES = {
    "one": [checkpoint(1)],
    "five": [checkpoint(seed) for seed in range(5)],
    "more than any weight has directions": [checkpoint(seed) for seed in range(20, 32)],
    "one is the base": [checkpoint(1), checkpoint(2, 0.0), checkpoint(3)],
    "of other norms": [checkpoint(1, 0.1), checkpoint(2, 3.0), checkpoint(3)],
}
FLIPPED = 0.02  # of the numbers, at most, by a change of rounding size
MOST_SLOTS = 12  # matrices of the longer side squared, for each weight; it takes no T


def stream_of(rule: Rule, checkpoints: list[Checkpoint]) -> Stream:
    """Fold some checkpoints."""
    stream = Stream(rule, WEIGHTS)
    for tau in checkpoints:
        stream.fold(tau)
    return stream


def parameters(rule_class: type[Any]) -> dict[str, Any]:
    """Return the type of each parameter of a rule, by name."""
    hints = get_type_hints(rule_class)
    return {parameter.name: hints[parameter.name] for parameter in fields(rule_class)}


def examples_of(rule_class: type[Any]) -> list[Rule]:
    """Return a rule as it is by default, and with each choice of each parameter that has choices; of steps it takes few."""
    few = {"steps": FEW_STEPS} if "steps" in parameters(rule_class) else {}
    return [rule_class(**few)] + [
        rule_class(**few, **{name: choice})
        for name, kind in parameters(rule_class).items()
        for choice in (get_args(kind) if get_origin(kind) is Literal else ())
        if choice != getattr(rule_class(), name)
    ]


def bad_values_for(kind: Any) -> tuple[Any, ...]:
    """Return what no parameter of this type may be."""
    return ("no such choice",) if get_origin(kind) is Literal else (nan, inf, -inf) if kind is float else ()


def statistics(rule: Rule) -> Iterator[tuple[Statistic, Weight]]:
    """Yield every statistic that a rule keeps, with its weight."""
    return ((statistic, w) for w in WEIGHTS for statistic in rule.keeps(w))


def sums(rule: Rule) -> Iterator[tuple[Sum, Statistic, Weight]]:
    """Yield those that are sums, twice: under both of their types."""
    return ((statistic, statistic, w) for statistic, w in statistics(rule) if isinstance(statistic, Sum))


def subtractable(rule: Rule) -> bool:
    """Whether a checkpoint can be taken out of everything that a rule keeps."""
    return all(isinstance(statistic, Sum) for statistic, _ in statistics(rule))


def given(rule: Rule, taus: list[Checkpoint], shares: tuple[float, ...] = ()) -> Checkpoints:
    """Return what a reference is given: the same checkpoints, with the seeds and extras that a stream makes up."""
    needs = frozenset(need for statistic, _ in statistics(rule) for need in statistic.needs) - {"seed"}
    extras = [
        {need: {n: extra_of(needs, n, t)[need].double() for n, t in tau.items()} for need in needs} for tau in taus
    ]
    return Checkpoints(
        [{name: tensor.double() for name, tensor in tau.items()} for tau in taus],
        {w.name: w.kind for w in WEIGHTS},
        shares,
        [{name: seed_of(name, tensor) for name, tensor in tau.items()} for tau in taus],
        extras,
    )


class RuleContract:
    """The cases; none may be skipped."""

    @pytest.fixture
    def rule(self) -> Rule:
        raise NotImplementedError

    @pytest.fixture
    def reference(self) -> Reference:
        raise NotImplementedError

    def test_a_rule_is_a_value(self, rule: Rule) -> None:
        assert rule == type(rule)(**asdict(rule))
        assert hash(rule) == hash(type(rule)(**asdict(rule)))

    def test_equal_parameters_keep_equal_statistics(self, rule: Rule) -> None:
        twin: Rule = type(rule)(**asdict(rule))
        for w in WEIGHTS:
            assert rule.keeps(w) == twin.keeps(w) != ()
            assert len({*rule.keeps(w), *twin.keeps(w)}) == len(rule.keeps(w))

    def test_bad_parameters_raise_value_error(self, rule: Rule) -> None:
        for name, kind in parameters(type(rule)).items():
            for bad in bad_values_for(kind):
                with pytest.raises(ValueError, match=name.rstrip("_")):
                    type(rule)(**{name: bad})

    def test_slots_do_not_grow_with_the_folds(self, rule: Rule) -> None:
        planned = [(slot.shape, slot.dtype) for slot in Stream(rule, WEIGHTS).slots()]
        for count in (1, 5):
            stream = stream_of(rule, STREAMS["five checkpoints"][:count])
            assert [(slot.shape, slot.dtype) for slot in stream.slots()] == planned

    def test_a_readout_has_its_weights_shape(self, rule: Rule) -> None:
        readouts = stream_of(rule, STREAMS["five checkpoints"]).readouts
        assert {name: tuple(readout.shape) for name, readout in readouts.items()} == {w.name: w.shape for w in WEIGHTS}

    @pytest.mark.parametrize("case", STREAMS)
    def test_slots_and_published_weights_are_finite(self, rule: Rule, case: str) -> None:
        stream = stream_of(rule, STREAMS[case])
        assert all(bool(tensor.isfinite().all()) for tensor in (*stream.slots(), *stream.published().values()))

    @pytest.mark.parametrize("case", STREAMS)
    def test_the_scale_is_positive_or_a_parameter(self, rule: Rule, case: str) -> None:
        scale = stream_of(rule, STREAMS[case]).scale
        assert isfinite(scale)
        assert scale > 0 or scale in asdict(rule).values()

    @pytest.mark.parametrize("totals", TOTALS, ids=str)
    def test_no_totals_poison_the_scale(self, rule: Rule, totals: Totals) -> None:
        assert isfinite(rule.scale(totals))

    def test_the_same_checkpoints_in_the_same_order_give_the_same_bytes(self, rule: Rule) -> None:
        one, other = (stream_of(rule, STREAMS["five checkpoints"]) for _ in range(2))
        assert one.totals == other.totals
        for pair in zip(
            (*one.slots(), *one.readouts.values()), (*other.slots(), *other.readouts.values()), strict=True
        ):
            assert torch.equal(*pair)

    def test_a_fold_leaves_its_inputs_alone(self, rule: Rule) -> None:
        for statistic, w in statistics(rule):
            kept = fold_once(statistic, w, empty_slots(statistic, w), checkpoint(1)[w.name]).slots
            before, delta = {name: slot.clone() for name, slot in kept.items()}, checkpoint(2)[w.name]
            fold_once(statistic, w, kept, delta)
            assert torch.equal(delta, checkpoint(2)[w.name])
            assert all(torch.equal(slot, before[name]) for name, slot in kept.items())

    @pytest.mark.parametrize("share", [1.0, 2.5])
    def test_what_was_prepared_changes_no_byte_wherever_it_was_meanwhile(
        self, rule: Rule, share: float, tmp_path: Path
    ) -> None:
        for statistic, w in statistics(rule):
            kept = fold_once(statistic, w, empty_slots(statistic, w), checkpoint(1)[w.name]).slots
            update, ready = update_of(statistic, w, checkpoint(2)[w.name], share), statistic.prepare(kept, w)
            assert bool(ready) <= prepares(statistic)
            with Preparation(tmp_path / w.name / "1", "", lambda place: True) as into:
                into.add(place_of(w, statistic, None), ready)
            stored = Prepared(tmp_path / w.name / "1").of(w, statistic, None)
            assert stored.keys() == ready.keys(), f"{statistic} prepares tensors with gaps"
            fresh = statistic.fold(kept, update, w, ONE, {})
            for prepared in (ready, stored):
                folded = statistic.fold(kept, update, w, ONE, prepared)
                assert all(torch.equal(slot, fresh.slots[name]) for name, slot in folded.slots.items())
                assert replace(folded, slots={}) == replace(fresh, slots={})

    @pytest.mark.parametrize("rows", [1, 2, 5])
    def test_blocks_of_rows_fold_as_the_whole_does(self, rule: Rule, rows: int) -> None:
        for statistic, w in statistics(rule):
            if not statistic.rowwise(w) or not w.size:
                continue
            kept = fold_once(statistic, w, empty_slots(statistic, w), checkpoint(1)[w.name]).slots
            update = update_of(statistic, w, checkpoint(2)[w.name])
            whole = statistic.fold(kept, update, w, ONE, {}).slots
            starts = range(0, w.shape[0], rows) if w.shape else ()
            blocks = [
                statistic.fold(
                    {name: slot[i : i + rows] for name, slot in kept.items()}, rows_of(update, i, i + rows), w, ONE, {}
                ).slots
                for i in starts
            ]
            for name in whole if blocks else ():
                found = torch.cat([block[name] for block in blocks])
                torch.testing.assert_close(found, whole[name], atol=1e-6, rtol=1e-6)

    def test_blocks_of_rows_are_read_out_as_the_whole_is(self, rule: Rule) -> None:
        stream = stream_of(rule, STREAMS["five checkpoints"])
        for w in WEIGHTS:
            if not rule.rowwise(w) or not w.size or not w.shape:
                continue
            parts = [
                rule.merged(
                    {s: {n: t[i : i + 2] for n, t in slots.items()} for s, slots in stream.kept[w.name].items()},
                    w,
                    Counts(5, 5.0),
                )
                for i in range(0, w.shape[0], 2)
            ]
            torch.testing.assert_close(torch.cat(parts), stream.readouts[w.name], atol=1e-6, rtol=1e-6)

    @pytest.mark.parametrize("rank", [0, 1, 2])
    def test_factors_fold_as_their_product_does(self, rule: Rule, rank: int) -> None:
        for statistic, w in statistics(rule):
            if len(w.shape) < 2:
                continue
            kept = fold_once(statistic, w, empty_slots(statistic, w), checkpoint(1)[w.name]).slots
            before = {name: slot.clone() for name, slot in kept.items()}
            factors = factors_of(w, rank)
            found = fold_once(statistic, w, kept, factors)
            dense = fold_once(statistic, w, kept, factors.dense())
            assert all(relative_error(slot, dense.slots[name]) < 1e-6 for name, slot in found.slots.items())
            assert found.removed == pytest.approx(dense.removed, rel=1e-4, abs=1e-9)
            assert all(torch.equal(slot, before[name]) for name, slot in kept.items())

    @pytest.mark.parametrize("case", BATCHES)
    @pytest.mark.parametrize("order", [1, 2, 3])
    def test_it_equals_its_batch_method(self, rule: Rule, reference: Reference, case: str, order: int) -> None:
        """In any order of arrival; where order matters, the batch method is given them in that order."""
        taus = BATCHES[case]
        arrived = Random(order).sample(taus, len(taus))
        ordered = any(statistic.ordered for statistic, _ in statistics(rule))
        expected = reference(given(rule, arrived if ordered else taus), **asdict(rule))
        found = stream_of(rule, arrived).published()
        errors = {name: relative_error(found[name], expected[name]) for name in found}
        assert max(errors.values()) < 1e-5, errors

    def test_a_share_of_two_is_folding_twice(self, rule: Rule, reference: Reference) -> None:
        first, second, third = BATCHES["five"][:3]
        once, twice = Stream(rule, WEIGHTS), Stream(rule, WEIGHTS)
        once.fold(first)
        once.fold(second, share=2.0)
        once.fold(third)
        for tau in (first, second, second, third):
            twice.fold(tau)
        expected = reference(given(rule, [first, second, third], (1.0, 2.0, 1.0)), **asdict(rule))
        for name, found in once.published().items():
            assert relative_error(found, twice.published()[name]) < 1e-5, name
            assert relative_error(found, expected[name]) < 1e-5, name

    @pytest.mark.parametrize("shares", [(0.5, 0.5, 0.5), (0.5, 1.0, 3.0)])
    def test_shares_count_as_in_the_batch_method(
        self, rule: Rule, reference: Reference, shares: tuple[float, ...]
    ) -> None:
        """Shares may be fractions where what is kept is a sum."""
        if not subtractable(rule):
            shares = (1.0, 2.0, 3.0)
        taus, stream = BATCHES["five"][:3], Stream(rule, WEIGHTS)
        for tau, share in zip(taus, shares, strict=True):
            stream.fold(tau, share)
        expected = reference(given(rule, taus, shares), **asdict(rule))
        errors = {name: relative_error(found, expected[name]) for name, found in stream.published().items()}
        assert max(errors.values()) < 1e-5, errors

    def test_without_a_checkpoint_it_equals_the_batch_method_of_the_others(
        self, rule: Rule, reference: Reference
    ) -> None:
        """By subtraction where that can be, else the others are folded anew."""
        gone, *others = BATCHES["five"]
        stream = stream_of(rule, [gone, *others] if subtractable(rule) else others)
        if subtractable(rule):
            stream.remove(gone)
        expected = reference(given(rule, others), **asdict(rule))
        errors = {name: relative_error(found, expected[name]) for name, found in stream.published().items()}
        assert max(errors.values()) < 1e-5, errors

    def test_its_slots_take_so_many_bytes(self, rule: Rule) -> None:
        for w in WEIGHTS[:2]:
            nbytes = sum(spec.nbytes for s in rule.keeps(w) for spec in s.slots(w).values())
            print(f"{rule} {w.name} {w.shape}: {nbytes} bytes of slots, {nbytes / (4 * w.size):.2f} per parameter")
            assert 0 < nbytes <= MOST_SLOTS * 4 * max(w.shape) ** 2

    def test_a_change_of_rounding_size_changes_little(self, rule: Rule) -> None:
        """Continuous rules change boundedly; those that select flip few numbers, and the others obey the bound."""
        taus = BATCHES["five"]
        noise = torch.Generator().manual_seed(7)
        nearly = [{n: t + 1e-7 * t * torch.randn(t.shape, generator=noise) for n, t in tau.items()} for tau in taus]
        one, other = Stream(rule, WEIGHTS), Stream(rule, WEIGHTS)
        for tau, near in zip(taus, nearly, strict=True):
            one.fold(tau)
            other.fold(near, origin=tau)
        for name, found in one.published().items():
            moved = (found - other.published()[name]).abs() > 1e-3 * found.norm() / max(found.numel(), 1) ** 0.5
            assert float(moved.double().mean() if moved.numel() else 0) <= FLIPPED, name

    def test_a_sum_does_not_know_its_order(self, rule: Rule) -> None:
        for _, statistic, w in sums(rule):
            results = []
            for order in ((0, 1, 2, 3, 4), (4, 3, 2, 1, 0), (2, 0, 4, 1, 3)):
                kept = empty_slots(statistic, w)
                for seed in order:
                    kept = dict(fold_once(statistic, w, kept, checkpoint(seed)[w.name]).slots)
                results.append(kept)
            for other in results[1:]:
                assert all(relative_error(slot, results[0][name]) < 1e-6 for name, slot in other.items())

    @pytest.mark.parametrize("share", [1.0, 0.5, 2.0])
    def test_a_sum_forgets_what_is_removed(self, rule: Rule, share: float) -> None:
        for sum_, statistic, w in sums(rule):
            kept = fold_once(statistic, w, empty_slots(statistic, w), checkpoint(1)[w.name]).slots
            update = update_of(statistic, w, checkpoint(2)[w.name], share)
            removed = sum_.remove(statistic.fold(kept, update, w, ONE, {}).slots, update, w).slots
            size = sum(float(checkpoint(seed)[w.name].norm()) for seed in (1, 2))
            assert all(float((slot - kept[name]).norm()) <= 1e-6 * size for name, slot in removed.items())
