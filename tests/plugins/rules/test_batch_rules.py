"""Every registered batch rule held to the contract of batch rules, and what is particular to each."""

from importlib import import_module
from importlib.metadata import entry_points
from math import pi, sqrt

import pytest
import torch
from contracts.batch_rule import EQUAL_TO, BatchRuleContract, Reference, given
from contracts.rule import examples_of
from references import doge as doge_reference
from references import pcb as pcb_reference

from mergd.plugins.rules.average import Average
from mergd.plugins.rules.batch_interface import BatchRule, is_batch
from mergd.plugins.rules.consensus_ta import ConsensusTa
from mergd.plugins.rules.doge import Doge, gap, gradient
from mergd.plugins.rules.iso_cts import IsoCts, directions
from mergd.plugins.rules.karcher import Karcher
from mergd.plugins.rules.pcb import Pcb
from mergd.state.records import Weight

OURS = [entry for entry in entry_points(group="mergd.rules") if entry.value.startswith("mergd.")]
NAMES = {entry.load(): entry.name for entry in OURS if is_batch(entry.load())}
EXAMPLES = [rule for kind in NAMES for rule in examples_of(kind)]
MATRIX = Weight("matrix", (26, 13), "matrix")
TWO = (1.0, 1.0)


class TestRegisteredBatchRules(BatchRuleContract):
    @pytest.fixture(params=EXAMPLES, ids=repr)
    def rule(self, request: pytest.FixtureRequest) -> BatchRule:
        rule: BatchRule = request.param
        return rule

    @pytest.fixture
    def reference(self, rule: BatchRule) -> Reference:
        merge: Reference = import_module(f"references.{NAMES[type(rule)]}").merge
        return merge


def test_the_batch_rules_of_mergd_are_registered() -> None:
    assert {Pcb, IsoCts, ConsensusTa, Doge, Karcher} <= NAMES.keys()
    assert not is_batch(Average)
    assert not is_batch(Average())


def test_pcb_follows_the_task_that_agrees_with_the_sum() -> None:
    taus = [torch.tensor([0.3, 0.1, 0.2]), torch.tensor([-0.1, 0.1, -0.2])]
    w = Weight("three", (3,), "other")
    merged = Pcb(pcb_ratio=1.0).merge(taus, w, TWO, torch.zeros(3))
    assert float(merged[0]) == pytest.approx(0.2)  # the first task's, clamped to its next largest entry


def test_pcb_by_weights_keeps_what_over_the_checkpoint_is_dropped() -> None:
    """A weight with small task vectors has nothing among the largest tenth of the checkpoint, and a tenth of its own."""
    loud = [{**tau, "bias": 0.01 * tau["bias"]} for tau in EQUAL_TO["five"]]
    whole, by_weight = (pcb_reference.merge(given(loud), over=over)["bias"] for over in ("model", "weight"))
    assert int(whole.count_nonzero()) < int(by_weight.count_nonzero())


def test_doge_by_weights_keeps_what_over_the_checkpoint_is_dropped() -> None:
    quiet = [{**tau, "row": 0.001 * tau["row"]} for tau in EQUAL_TO["two"]]
    whole, by_weight = (doge_reference.merge(given(quiet), over=over)["row"] for over in ("model", "weight"))
    assert int(whole.count_nonzero()) == 0 < int(by_weight.count_nonzero())


@pytest.mark.parametrize("T", [1, 2, 3.5, 5, 13, 40])
@pytest.mark.parametrize("fraction", [0.0, 0.8, 1.0])
def test_iso_cts_gives_out_every_direction_once(T: float, fraction: float) -> None:
    for k in (1, 2, 13, 768):
        common, own = directions(k, T, fraction)
        assert 0 <= own * T <= k
        assert common == pytest.approx(k - own * T, abs=0.5)


def test_iso_cts_is_isotropic() -> None:
    taus = [tau["tall"] for tau in EQUAL_TO["five"]]
    S = torch.linalg.svdvals(IsoCts().merge(taus, MATRIX, (1.0,) * 5, torch.zeros(26, 13)))
    assert S.min() == pytest.approx(float(S.max()), rel=1e-5)


def test_iso_cts_adds_no_direction_that_no_checkpoint_has() -> None:
    taus = [tau["tall"] for tau in EQUAL_TO["of rank 2"]]
    merged = IsoCts().merge(taus, MATRIX, (1.0,) * 3, torch.zeros(26, 13))
    assert int(torch.linalg.matrix_rank(merged, rtol=1e-4)) <= 6


def test_consensus_keeps_what_two_use() -> None:
    taus = [torch.tensor([1.0, 1.0, 1.0, 0.1]), torch.tensor([1.0, 0.0, -0.3, 0.1]), torch.tensor([0.0, 0.0, 0.0, 3.0])]
    merged = ConsensusTa(tall_mask_lambda=0.6).merge(taus, Weight("four", (4,), "other"), (1.0,) * 3, torch.zeros(4))
    assert merged.tolist() == [2.0, 0.0, 0.0, 0.0]  # used by two; by one; by one, against another; by one


def test_doge_follows_the_gradient_of_its_loss() -> None:
    taus = [tau["tall"].double() for tau in EQUAL_TO["two"]]
    lamdas, D = [0.5, 0.25], taus[0].flip(0).clone().requires_grad_()
    merged = 0.5 * (taus[0] + D) + 0.25 * (taus[1] + D)
    loss = sum(((tau * (tau - merged)).sum(1) ** 2).sum() for tau in taus)
    (expected,) = torch.autograd.grad(torch.as_tensor(loss), D)
    at_zero = 0.5 * taus[0] + 0.25 * taus[1]
    found = gradient(taus, [gap(tau, at_zero) for tau in taus], TWO, sum(lamdas), D.detach())
    torch.testing.assert_close(found, expected)


def test_doge_without_steps_adds_the_largest_entries_at_one_norm() -> None:
    taus = [tau["tall"] for tau in EQUAL_TO["two"]]
    merged = Doge(steps=0, density=1.0).merge([taus[0], 100 * taus[1]], MATRIX, TWO, torch.zeros(26, 13))
    torch.testing.assert_close(merged, 0.07 * sum((tau / tau.norm() for tau in taus), torch.zeros(26, 13)))


def test_karcher_is_half_way_along_the_arc() -> None:
    w, base = Weight("two", (2,), "other"), torch.zeros(2)
    merged = Karcher().merge([torch.tensor([1.0, 0.0]), torch.tensor([0.0, 3.0])], w, TWO, base)
    torch.testing.assert_close(merged, torch.tensor([sqrt(2), sqrt(2)]))


def test_karcher_weighs_the_arc_by_share() -> None:
    w, base = Weight("two", (2,), "other"), torch.zeros(2)
    merged = Karcher().merge([torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])], w, (2.0, 1.0), base)
    assert float(torch.atan2(merged[1], merged[0])) == pytest.approx(pi / 6, abs=1e-5)


def test_karcher_tells_checkpoints_apart_that_hardly_left_the_base() -> None:
    """In float32 the angle between these two is lost in rounding; the merged weight is still on the sphere."""
    base = torch.randn(26, 13, generator=torch.Generator().manual_seed(0))
    taus = [1e-3 * tau["tall"] for tau in EQUAL_TO["two"]]
    merged = Karcher().merge(taus, MATRIX, TWO, base)
    assert float((merged - (taus[0] + taus[1]) / 2).norm()) < 1e-4 * float(merged.norm())
