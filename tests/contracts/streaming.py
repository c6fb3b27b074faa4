"""A stream of folds in memory: drives a rule as the daemon does, weight by weight, without files."""

from collections.abc import Iterable, Mapping
from math import sqrt

import torch
from torch import Tensor

from mergd.plugins.rules.interface import Folded, LowRank, Rule, Slots, Statistic, Update
from mergd.state.records import Counts, Totals, Weight

ONE = Counts(1, 1.0)
TORCH_DTYPE = {"F32": torch.float32, "F64": torch.float64}


def empty_slots(statistic: Statistic, w: Weight) -> dict[str, Tensor]:
    """Return the slots of a statistic before any fold: zeros."""
    return {name: torch.zeros(s.shape, dtype=TORCH_DTYPE[s.dtype]) for name, s in statistic.slots(w).items()}


def fold_once(statistic: Statistic, w: Weight, kept: Slots, delta: Tensor | LowRank, share: float = 1.0) -> Folded:
    """Fold one task vector with nothing prepared: float64 where a slot is, else float32."""
    wide = any(spec.dtype == "F64" for spec in statistic.slots(w).values())
    return statistic.fold(kept, Update(delta.to(torch.float64 if wide else torch.float32), share), w, ONE, {})


def norm(tensors: Iterable[Tensor]) -> float:
    """Return the Frobenius norm of a whole model, gathered in float64."""
    return sqrt(sum(float(torch.linalg.vector_norm(tensor, dtype=torch.float64)) ** 2 for tensor in tensors))


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Return norm(found - expected) / norm(expected), or norm(found) where zero is expected."""
    return float((found.double() - expected.double()).norm() / (expected.double().norm() or 1.0))


class Stream:
    """One line of versions: the kept slots of every weight, what is read out of them, and the totals."""

    def __init__(self, rule: Rule, weights: tuple[Weight, ...]) -> None:
        self.rule, self.weights = rule, weights
        self.totals = Totals()
        self.kept: dict[str, dict[Statistic, Slots]] = {
            w.name: {statistic: empty_slots(statistic, w) for statistic in rule.keeps(w)} for w in weights
        }
        self.readouts: dict[str, Tensor] = {}

    def fold(self, tau: Mapping[str, Tensor], share: float = 1.0) -> None:
        """Fold the task vectors of one checkpoint."""
        counts = Counts(self.totals.folded + 1, self.totals.shares + share)
        for w in self.weights:
            kept = self.kept[w.name]
            self.kept[w.name] = {s: fold_once(s, w, kept[s], tau[w.name], share).slots for s in kept}
            self.readouts[w.name] = self.rule.merged(self.kept[w.name], w, counts)
        self.totals = self.totals.with_checkpoint(norm(tau.values()), share, norm(self.readouts.values()))

    @property
    def scale(self) -> float:
        """The factor of the published task vector."""
        return self.rule.scale(self.totals)

    def published(self) -> dict[str, Tensor]:
        """Return the published task vector of each weight, float64."""
        return {name: self.scale * readout.double() for name, readout in self.readouts.items()}

    def slots(self) -> list[Tensor]:
        """Return every slot, in one order."""
        return [slot for kept in self.kept.values() for slots in kept.values() for slot in slots.values()]
