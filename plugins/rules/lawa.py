"""Latest weight averaging: the mean of the last k checkpoints.

Source: LAWA, arXiv 2209.14981, algorithm 1 (k = 6).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ...state.records import Counts, SlotSpec, Weight
from ._reading import ReadsEntries
from .interface import Folded, Recurrence, Slots, Statistic, Update


def window(shares: list[float], k: int) -> list[float]:
    """Return how much of each share, the latest first, lies in a window of k shares."""
    inside, left = [], float(k)
    for share in shares:
        inside.append(min(share, left))
        left -= inside[-1]
    return inside


@dataclass(frozen=True)
class Ring(Recurrence):
    """The last k task vectors, each in a place of its own that the one k checkpoints later takes over."""

    k: int

    def slots(self, w: Weight) -> Mapping[str, SlotSpec]:
        """k slots in the weight's shape, and their shares: once for each row, so that blocks of rows have them too."""
        places = {f"place{place}": SlotSpec(w.shape) for place in range(self.k)}
        return places | {"shares": SlotSpec((*w.shape[:1], self.k))}

    def rowwise(self, w: Weight) -> bool:
        """Always."""
        return True

    def fold(self, kept: Slots, u: Update, w: Weight, before: Counts, prepared: Slots) -> Folded:
        """Put the task vector in place of the oldest one; the others stay as they are."""
        place = before.folded % self.k
        shares = kept["shares"].clone()
        shares[..., place] = u.share
        return Folded({**kept, f"place{place}": u.delta.to(kept[f"place{place}"].dtype), "shares": shares})

    def latest(self, kept: Slots, counts: Counts) -> list[tuple[float, Tensor]]:
        """Return the task vectors with how much of each lies in a window of k shares."""
        places = [(counts.folded - 1 - back) % self.k for back in range(min(counts.folded, self.k))]
        rows = kept["shares"].reshape(-1, self.k)
        shares = [float(share) for share in rows[0, places]] if rows.shape[0] else []
        return [(s, kept[f"place{place}"]) for s, place in zip(window(shares, self.k), places, strict=False)]


@dataclass(frozen=True)
class Lawa(ReadsEntries):
    """Reads the mean of the last k task vectors. A checkpoint of share 2 takes up two of the k."""

    source: ClassVar[str] = "LAWA, arXiv 2209.14981, algorithm 1"

    k: int = 6  # how many; so many slots in each weight's shape are kept

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ValueError("k must be 1 or more")

    @property
    def statistic(self) -> Ring:
        """Return the ring."""
        return Ring(self.k)

    def merged(self, kept: Mapping[Statistic, Slots], w: Weight, counts: Counts) -> Tensor:
        """Return the mean."""
        slots = kept[self.statistic]
        latest = self.statistic.latest(slots, counts)
        total = sum(share for share, _ in latest)
        mean = torch.zeros_like(slots["place0"])
        for share, tau in latest:
            mean.add_(tau, alpha=share / total)
        return mean
