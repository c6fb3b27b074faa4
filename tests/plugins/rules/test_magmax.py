"""MagMax: the largest magnitude wins, whatever the order."""

from itertools import permutations

import torch
from contracts.streaming import Stream

from mergd.plugins.rules.magmax import MagMax
from mergd.state.records import Weight

WEIGHT = Weight("weight", (4,), "other")
TAUS = [torch.tensor(row) for row in ([1.0, -2, 0, 3], [-5.0, 2, 0, -3], [4.0, 1, 0, 2])]


def test_the_largest_magnitude_wins_and_of_equal_ones_the_positive_number() -> None:
    for order in permutations(TAUS):
        stream = Stream(MagMax(0.5), (WEIGHT,))
        for tau in order:
            stream.fold({"weight": tau})
        assert stream.published()["weight"].tolist() == [-2.5, 1, 0, 1.5]


def test_the_same_again_changes_nothing() -> None:
    stream = Stream(MagMax(), (WEIGHT,))
    stream.fold({"weight": TAUS[0]})
    once = stream.published()["weight"]
    stream.fold({"weight": TAUS[0]}, share=3.0)
    assert torch.equal(stream.published()["weight"], once)
