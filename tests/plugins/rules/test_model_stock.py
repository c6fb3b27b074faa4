"""Model Stock: the wider the angles, the closer to the base model."""

from math import cos, radians, sin

import pytest
import torch
from contracts.streaming import Stream
from torch import Tensor

from mergd.plugins.rules.model_stock import ModelStock, interpolation_ratio
from mergd.state.records import Weight

WEIGHT = Weight("weight", (3,), "other")


def published(*taus: Tensor) -> Tensor:
    stream = Stream(ModelStock(), (WEIGHT,))
    for tau in taus:
        stream.fold({"weight": tau})
    return stream.published()["weight"]


@pytest.mark.parametrize("degrees", [1, 45, 60, 89])
def test_two_checkpoints_are_merged_at_the_foot_of_the_perpendicular_from_the_base(degrees: int) -> None:
    """The merged model is as close to the base as the line through both centres is: figure 5 of the paper."""
    angle = radians(degrees)
    one, other = torch.tensor([1.0, 0, 0]), torch.tensor([cos(angle), sin(angle), 0])
    t = 2 * cos(angle) / (1 + cos(angle))
    assert torch.allclose(published(one, other), (t * (one + other) / 2).double(), atol=1e-6)


def test_what_agrees_is_its_mean() -> None:
    tau = torch.tensor([1.0, 2, 3])
    assert torch.allclose(published(tau, 3 * tau), (2 * tau).double(), rtol=1e-6)


@pytest.mark.parametrize("other", [(-1.0, -2, -3), (-1.0, -2, -3.001), (3.0, 0, -1)])
def test_from_a_right_angle_on_it_is_the_base(other: tuple[float, float, float]) -> None:
    assert float(published(torch.tensor([1.0, 2, 3]), torch.tensor(other)).norm()) < 1e-6


def test_a_checkpoint_that_does_not_change_a_weight_is_at_a_right_angle() -> None:
    tau = torch.tensor([1.0, 2, 3])
    t = interpolation_ratio(1 / 3, 3)  # of three pairs one agrees
    assert torch.allclose(published(tau, torch.zeros(3), tau), (t * 2 * tau / 3).double(), rtol=1e-5)


def test_a_single_checkpoint_is_itself() -> None:
    tau = torch.tensor([1.0, 2, 3])
    assert torch.equal(published(tau), tau.double())


def test_small_cosines_are_no_rounding() -> None:
    """Task vectors of large weights are nearly perpendicular: what is left of their directions' sum is then a small difference."""
    generator = torch.Generator().manual_seed(0)
    one, news = torch.randn(2, 2**18, generator=generator, dtype=torch.float64)
    other = news - (news @ one) / (one @ one) * one + 1e-4 * one
    one, other = one.float(), other.float()
    cosine = float(torch.nn.functional.cosine_similarity(one.double(), other.double(), dim=0))
    stream = Stream(ModelStock(), (Weight("weight", (2**18,), "other"),))
    for tau in (one, other):
        stream.fold({"weight": tau})
    expected = interpolation_ratio(cosine, 2) * (one.double() + other.double()) / 2
    assert float((stream.published()["weight"] - expected).norm()) < 1e-5 * float(expected.norm())
