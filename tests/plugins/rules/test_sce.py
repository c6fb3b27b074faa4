"""SCE: energies of any size weigh, and cancelling checkpoints elect the same sign in any order."""

import pytest
import torch
from contracts.streaming import Stream
from torch import Tensor

from mergd.plugins.rules.sce import Sce
from mergd.state.records import Weight

WEIGHT = Weight("weight", (4,), "other")


def published(*taus: Tensor) -> Tensor:
    stream = Stream(Sce(), (WEIGHT,))
    for tau in taus:
        stream.fold({"weight": tau})
    return stream.published()["weight"]


@pytest.mark.parametrize("factor", [1e-30, 1e-4, 1.0, 1e15])
def test_a_checkpoint_weighs_its_energy_however_small_all_are(factor: float) -> None:
    one, other = torch.tensor([1.0, 1, -1, 0]), torch.tensor([2.0, -2, -2, 2])  # energies 3/4 and 4
    expected = torch.tensor([(0.75 + 8) / 4.75, -2, -(0.75 + 8) / 4.75, 2], dtype=torch.float64)
    assert torch.allclose(published(one * factor, other * factor) / factor, expected, rtol=1e-6)


def test_the_order_of_cancelling_checkpoints_elects_nothing_else() -> None:
    x, y = (torch.randn(4, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
    taus = (x, y, -x, -y)
    found = [published(*(taus[i] for i in order)) for order in ((0, 1, 2, 3), (3, 1, 0, 2), (2, 3, 1, 0))]
    assert all(torch.allclose(other, found[0], rtol=1e-6) for other in found[1:])
    assert bool((found[0] > 0).all())


def test_what_rounding_leaves_of_removed_checkpoints_is_not_averaged() -> None:
    stream = Stream(Sce(), (WEIGHT,))
    gone = [torch.tensor([x, 1.0, 1.0, 1.0]) for x in (0.1, 0.7, -0.3)]
    for tau in (torch.tensor([0.0, 1, 2, 3]), *gone):
        stream.fold({"weight": tau}, 0.7)
    for tau in gone:
        stream.remove({"weight": tau}, 0.7)
    assert stream.published()["weight"].tolist() == pytest.approx([0, 1, 2, 3], abs=1e-6)
