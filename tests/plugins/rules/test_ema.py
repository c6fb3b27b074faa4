"""The exponential moving average: what it weighs, and what its decay may be."""

import pytest
import torch
from contracts.streaming import Stream, relative_error

from mergd.plugins.rules.ema import Ema
from mergd.state.records import Weight

WEIGHT = Weight("weight", (3,), "other")
FIRST, SECOND, THIRD = torch.eye(3)  # the read-out holds what each of them weighs


def published(rule: Ema, *folds: tuple[torch.Tensor, float]) -> torch.Tensor:
    stream = Stream(rule, (WEIGHT,))
    for tau, share in folds:
        stream.fold({"weight": tau}, share)
    return stream.published()["weight"]


def test_each_checkpoint_decays_those_before_it() -> None:
    found = published(Ema(0.8), (FIRST, 1), (SECOND, 1), (THIRD, 1))
    assert relative_error(found, torch.tensor([0.64, 0.16, 0.2])) < 1e-6


@pytest.mark.parametrize("share", [0.25, 1.0, 2.5])
def test_a_share_decays_as_often_as_it_says(share: float) -> None:
    kept = 0.8**share
    assert relative_error(published(Ema(0.8), (FIRST, 3), (SECOND, share)), torch.tensor([kept, 1 - kept, 0])) < 1e-6


def test_without_decay_the_latest_is_all_there_is() -> None:
    assert torch.equal(published(Ema(0.0), (FIRST, 1), (SECOND, 1)), SECOND.double())


@pytest.mark.parametrize("decay", [-0.1, 1.0, 1.5])
def test_a_decay_is_below_1(decay: float) -> None:
    with pytest.raises(ValueError, match="decay must be 0 or more and below 1"):
        Ema(decay)
