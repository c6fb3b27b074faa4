"""A stream of folds in memory: drives a rule as the daemon does, weight by weight, without files."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from math import sqrt

import torch
from torch import Tensor

from mergd.plugins.rules.interface import Folded, LowRank, Rule, Slots, Statistic, Sum, Survey, Update
from mergd.state.records import Counts, Totals, Weight

Checkpoint = Mapping[str, Tensor]  # task vectors by weight

ONE = Counts(1, 1.0)
TORCH_DTYPE = {"F32": torch.float32, "F64": torch.float64}


def empty_slots(statistic: Statistic, w: Weight) -> dict[str, Tensor]:
    """Return the slots of a statistic before any fold: zeros."""
    return {name: torch.zeros(s.shape, dtype=TORCH_DTYPE[s.dtype]) for name, s in statistic.slots(w).items()}


def fold_once(statistic: Statistic, w: Weight, kept: Slots, delta: Tensor | LowRank, share: float = 1.0) -> Folded:
    """Fold one task vector of one weight, as if it were the whole checkpoint, with nothing prepared."""
    return statistic.fold(kept, update_of(statistic, w, delta, share), w, ONE, {})


def update_of(statistic: Statistic, w: Weight, delta: Tensor | LowRank, share: float = 1.0) -> Update:
    """Return the news of one weight: float64 where a slot is, else float32; surveyed by itself."""
    wide = any(spec.dtype == "F64" for spec in statistic.slots(w).values())
    dense = delta.dense() if isinstance(delta, LowRank) else delta
    whole, extra = survey_all(statistic.surveys, [(w, dense)]), extra_of(statistic.needs, w.name, dense)
    return Update(delta.to(torch.float64 if wide else torch.float32), share, seed_of(w.name, dense), 0, extra, whole)


def rows_of(u: Update, first: int, last: int) -> Update:
    """Return a block of rows of an update."""
    extra = {name: tensor[first:last] for name, tensor in u.extra.items()}
    start = first * (u.delta.numel() // u.delta.shape[0])
    return replace(u, given=u.delta[first:last], start=start, extra=extra)


def survey_all(surveys: Iterable[Survey], blocks: Sequence[tuple[Weight, Tensor]]) -> dict[Survey, Slots]:
    """Return what surveys find over the blocks of one checkpoint."""
    found: dict[Survey, Slots] = {}
    for survey in surveys:
        found[survey] = {}
        for _ in range(survey.passes):
            sums: dict[str, Tensor] = {}
            for w, block in blocks:
                for name, term in survey.term(block, w, found[survey]).items():
                    sums[name] = sums[name] + term if name in sums else term
            found[survey] = survey.found(sums, found[survey])
    return found


def seed_of(name: str, tensor: Tensor) -> int:
    """Return a seed from a weight's name and bytes."""
    data = name.encode() + tensor.float().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return int.from_bytes(hashlib.sha256(data).digest()[:8], "big") >> 1


def extra_of(needs: frozenset[str], name: str, tensor: Tensor) -> dict[str, Tensor]:
    """Return positive tensors under the names that are needed, made up from a weight's name and bytes."""
    generator = torch.Generator().manual_seed(seed_of(name, tensor))
    return {need: torch.rand(tensor.shape, generator=generator) + 0.1 for need in sorted(needs - {"seed"})}


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

    def fold(self, tau: Checkpoint, share: float = 1.0, origin: Checkpoint | None = None) -> None:
        """Fold the task vectors of one checkpoint, with seeds and extras of `origin` where it is a change of that."""
        before = Counts(self.totals.folded, self.totals.shares)
        for w, statistic, u in self._updates(tau, share, origin or tau):
            self.kept[w.name][statistic] = statistic.fold(self.kept[w.name][statistic], u, w, before, {}).slots
        self._read_out(tau, share)

    def remove(self, tau: Checkpoint, share: float = 1.0) -> None:
        """Take one checkpoint out again; every statistic is a sum."""
        for w, statistic, u in self._updates(tau, share, tau):
            assert isinstance(statistic, Sum)
            self.kept[w.name][statistic] = statistic.remove(self.kept[w.name][statistic], u, w).slots
        self._read_out(tau, -share)

    def _updates(self, tau: Checkpoint, share: float, origin: Checkpoint) -> Iterator[tuple[Weight, Statistic, Update]]:
        surveys = dict.fromkeys(survey for kept in self.kept.values() for s in kept for survey in s.surveys)
        whole = survey_all(surveys, [(w, tau[w.name]) for w in self.weights])
        for w in self.weights:
            for statistic in tuple(self.kept[w.name]):
                seed, extra = seed_of(w.name, origin[w.name]), extra_of(statistic.needs, w.name, origin[w.name])
                u = update_of(statistic, w, tau[w.name], share)
                yield w, statistic, replace(u, seed=seed, extra=extra, whole=whole)

    def _read_out(self, tau: Checkpoint, share: float) -> None:
        before = self.totals
        counts = Counts(before.folded + (share > 0) - (share < 0), before.shares + share)
        self.readouts = {w.name: self.rule.merged(self.kept[w.name], w, counts) for w in self.weights}
        self.totals = before.with_checkpoint(norm(tau.values()), share, norm(self.readouts.values()))

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
