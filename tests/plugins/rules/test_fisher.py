"""Fisher merging: what is known best counts most, and where nothing is known the mean is read."""

import pytest
import torch
from torch import Tensor

from mergd.plugins.rules.fisher import Fisher, FisherSum
from mergd.plugins.rules.interface import Slots, Statistic, TaskSum, Update
from mergd.state.records import Counts, Weight

WEIGHT = Weight("weight", (3,), "other")


def merged(*checkpoints: tuple[Tensor, Tensor]) -> Tensor:
    """Return the read-out of task vectors with their Fisher information."""
    kept: dict[Statistic, Slots] = {
        statistic: {name: torch.zeros(3) for name in statistic.slots(WEIGHT)} for statistic in Fisher().keeps(WEIGHT)
    }
    for count, (tau, F) in enumerate(checkpoints):
        u = Update(tau, extra={"fisher": F})
        kept = {s: s.fold(slots, u, WEIGHT, Counts(count, count), {}).slots for s, slots in kept.items()}
    return Fisher().merged(kept, WEIGHT, Counts(len(checkpoints), len(checkpoints)))


def test_what_is_known_best_counts_most() -> None:
    found = merged(
        (torch.tensor([1.0, 1, 1]), torch.tensor([3.0, 0, 0])), (torch.full((3,), 5.0), torch.tensor([1.0, 2, 0]))
    )
    assert found.tolist() == [2, 5, 3]


@pytest.mark.parametrize("factor", [1e-30, 1e-12, 1e12])
def test_only_the_ratio_of_fisher_information_matters(factor: float) -> None:
    F = torch.tensor([3.0, 1, 2]), torch.tensor([1.0, 1, 0])
    one, other = ((torch.full((3,), value), f * factor) for value, f in zip((1.0, 5.0), F, strict=True))
    assert torch.allclose(merged(one, other), torch.tensor([2.0, 3, 1]), rtol=1e-6)


def test_it_asks_for_fisher_information() -> None:
    assert FisherSum().needs == {"fisher"}
    assert TaskSum() in Fisher().keeps(WEIGHT)
