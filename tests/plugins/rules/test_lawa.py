"""Latest weight averaging: what is in the window, and that the ring writes one place a fold."""

import pytest
import torch
from contracts.streaming import Stream, empty_slots, relative_error, update_of
from torch import Tensor

from mergd.plugins.rules.lawa import Lawa, Ring, window
from mergd.state.records import Counts, Weight

WEIGHT = Weight("weight", (6,), "other")


def weighed(rule: Lawa, *shares: float) -> Tensor:
    """Return what each of the checkpoints weighs in the read-out."""
    stream = Stream(rule, (WEIGHT,))
    for tau, share in zip(torch.eye(6), shares, strict=False):
        stream.fold({"weight": tau}, share)
    return stream.published()["weight"][: len(shares)]


def test_only_the_last_k_count() -> None:
    assert relative_error(weighed(Lawa(3), 1, 1, 1, 1, 1), torch.tensor([0, 0, 1, 1, 1]) / 3) < 1e-6


def test_of_fewer_than_k_all_count() -> None:
    assert relative_error(weighed(Lawa(6), 1, 1), torch.tensor([0.5, 0.5])) < 1e-6


@pytest.mark.parametrize(
    ("shares", "inside"),
    [((1, 1, 2), (0, 1, 2)), ((1, 5, 1), (0, 2, 1)), ((1, 1, 9), (0, 0, 3)), ((1, 0.5, 0.5, 0.5), (0, 1, 1, 1))],
)
def test_a_share_takes_up_as_much_of_the_window(shares: tuple[float, ...], inside: tuple[float, ...]) -> None:
    expected = torch.tensor(inside, dtype=torch.float64)
    assert relative_error(weighed(Lawa(3), *shares), expected / expected.sum()) < 1e-6


def test_the_window_ends_within_a_share() -> None:
    assert window([1.0, 2.5, 1.0], 3) == [1.0, 2.0, 0.0]


def test_a_fold_writes_one_place_and_the_shares() -> None:
    ring, kept = Ring(4), empty_slots(Ring(4), WEIGHT)
    after = ring.fold(kept, update_of(ring, WEIGHT, torch.ones(6)), WEIGHT, Counts(6, 6.0), {}).slots
    assert {name for name in after if after[name] is not kept[name]} == {"place2", "shares"}


@pytest.mark.parametrize("k", [0, -1])
def test_k_counts_checkpoints(k: int) -> None:
    with pytest.raises(ValueError, match="k must be 1 or more"):
        Lawa(k)
