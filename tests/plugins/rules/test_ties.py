"""TIES: which entries are trimmed where magnitudes are equal, which sign is elected where masses are, and what is averaged."""

from typing import Literal

import pytest
import torch
from contracts.streaming import Stream
from torch import Tensor

from mergd.plugins.rules._masses import TIE, elect
from mergd.plugins.rules.ties import Ties
from mergd.state.records import Weight

A, B = Weight("a", (4,), "other"), Weight("b", (2, 3), "matrix")


def published(rule: Ties, *taus: dict[str, Tensor]) -> dict[str, Tensor]:
    stream = Stream(rule, (A, B))
    for tau in taus:
        stream.fold(tau)
    return stream.published()


def test_a_model_is_trimmed_as_a_whole_and_a_tensor_by_itself() -> None:
    tau = {"a": torch.tensor([9.0, 8, 7, 6]), "b": torch.tensor([[5.0, 4, 3], [2, 1, 0]])}
    model, tensor = (published(Ties(0.5, 1.0, trim), tau) for trim in ("model", "tensor"))
    assert model["a"].tolist() == [9, 8, 7, 6]
    assert model["b"].tolist() == [[5, 4, 0], [0, 0, 0]]  # the authors keep one more than half of ten
    assert tensor["a"].tolist() == [9, 8, 0, 0]
    assert tensor["b"].tolist() == [[5, 4, 3], [0, 0, 0]]


@pytest.mark.parametrize("trim", ["model", "tensor"])
def test_entries_as_large_as_the_threshold_all_stay(trim: Literal["model", "tensor"]) -> None:
    tau = {"a": torch.tensor([1.0, -1, 1, -1]), "b": torch.full((2, 3), -1.0)}
    found = published(Ties(0.2, 1.0, trim), tau)
    assert all(torch.equal(found[name], tau[name].double()) for name in tau)


def test_of_each_tensor_one_entry_is_kept_at_least() -> None:
    tau = {"a": torch.tensor([1.0, 2, 3, 4]), "b": torch.zeros(2, 3)}
    assert published(Ties(0.01, 1.0, "tensor"), tau)["a"].tolist() == [0, 0, 0, 4]


def test_the_larger_mass_elects_and_zeros_are_not_averaged() -> None:
    rows = [(3.0, -1, 5, 0), (-1.0, -2, 0, 0), (-1.0, 5, 1, 0)]
    found = published(Ties(1.0), *({"a": torch.tensor(row), "b": torch.zeros(2, 3)} for row in rows))
    assert found["a"].tolist() == [3, 5, 3, 0]


def test_masses_that_rounding_cannot_tell_apart_elect_the_positive_sign() -> None:
    P, N = torch.tensor([1.0, 1.0, 1.0, 0.0]), -torch.tensor([1.0, 1 + TIE, 1 + 4 * TIE, 0.0])
    assert elect(P, N).tolist() == [True, True, False, True]


def test_the_order_of_cancelling_checkpoints_elects_nothing_else() -> None:
    x, y = (torch.randn(4, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
    taus = [{"a": tau, "b": torch.zeros(2, 3)} for tau in (x, y, -x, -y)]
    orders = ((0, 1, 2, 3), (3, 1, 0, 2), (2, 3, 1, 0))
    found = [published(Ties(1.0), *(taus[i] for i in order))["a"] for order in orders]
    assert all(torch.allclose(other, found[0], rtol=1e-6, atol=0) for other in found[1:])
    assert bool((found[0] > 0).all())


def test_what_rounding_leaves_of_a_removed_checkpoint_is_not_averaged() -> None:
    stream, shares = Stream(Ties(1.0), (A, B)), (0.1, 0.7, 0.3)
    gone = [{"a": torch.tensor([3.1, 0, 0, 0]) * share, "b": torch.zeros(2, 3)} for share in shares]
    stream.fold({"a": torch.tensor([0.0, 1, 2, 3]), "b": torch.zeros(2, 3)})
    for tau, share in zip(gone, shares, strict=True):
        stream.fold(tau, share)
    for tau, share in zip(gone, shares, strict=True):
        stream.remove(tau, share)
    assert float(stream.published()["a"][0]) == 0


@pytest.mark.parametrize("density", [0.0, 1.01])
def test_a_density_is_a_share_of_the_entries(density: float) -> None:
    with pytest.raises(ValueError, match="density must be above 0 and at most 1"):
        Ties(density)
