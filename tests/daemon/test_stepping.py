"""Stepping: what iterates within torch gets on, can be ended, and comes to the same."""

import pytest
import torch

from mergd.daemon.progress import Progress
from mergd.daemon.stepping import Stepping
from mergd.plugins.rules.doge import Doge
from mergd.state.errors import Abandoned
from mergd.state.records import Weight

RULE, W = Doge(steps=50), Weight("w", (6, 4), "matrix")
TAUS = [torch.randn(6, 4, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2)]


def merge() -> torch.Tensor:
    return RULE.merge(TAUS, W, [1.0, 1.0], torch.empty(0))


def test_each_turn_of_a_rule_that_iterates_is_a_step_and_comes_to_the_same() -> None:
    progress = Progress()
    with Stepping(progress):
        stepped = merge()
    assert progress.steps >= RULE.steps
    assert torch.equal(stepped, merge())


def test_it_ends_in_mid_rule_if_it_is_to() -> None:
    progress = Progress()
    progress.abandon.set()
    with pytest.raises(Abandoned), Stepping(progress):
        merge()
