"""What a fold rule is: statistics are what is kept of the checkpoints, a rule is how the merged task vector is read out.

Everything here is pure: no file, clock, log, thread or choice of device.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from torch import Tensor

from ...state.records import Counts, SlotSpec, Totals, Weight

Slots = Mapping[str, Tensor]
NOTHING: Slots = {}


@dataclass(frozen=True)
class Update:
    """One checkpoint's news about one weight."""

    delta: Tensor  # the task vector here, float32, in the weight's shape or a block of its rows
    share: float = 1.0  # the checkpoint's weight; 2 means "as if folded twice"


@dataclass(frozen=True)
class Folded:
    """A statistic's slots after a fold, and what it wants to be known about it."""

    slots: Slots  # a slot returned as the same object is unchanged
    split_rank: float = 0.0  # leading directions that were protected (mean over a batch of matrices)
    removed: float = 0.0  # squared Frobenius norm of what was not kept of the task vector


class Statistic(Protocol):
    """What is kept of the checkpoints for one weight; a frozen dataclass: equal ones are one shared set of slots."""

    def slots(self, w: Weight) -> Mapping[str, SlotSpec]:
        """Return the slots by name. It is not told how many checkpoints were folded: constant by construction."""
        ...

    def rowwise(self, w: Weight) -> bool:
        """Whether `fold` may be given blocks of rows (of the first dimension) in place of the whole weight."""
        ...

    def prepare(self, kept: Slots, w: Weight) -> Slots:
        """Return what a fold needs of `kept` alone, so that it can be computed before a checkpoint is there."""
        ...

    def fold(self, kept: Slots, u: Update, w: Weight, before: int, prepared: Slots) -> Folded:
        """Return the slots after update `u`; `before` checkpoints were folded earlier. `prepared` may be empty."""
        ...


class Sum:
    """Every exact statistic: a sum over the checkpoints, in any order. A subclass writes `term` alone."""

    def term(self, u: Update, w: Weight) -> Slots:
        """Return what one checkpoint adds to each slot, for a share of 1."""
        raise NotImplementedError

    def rowwise(self, w: Weight) -> bool:
        """A sum may be taken row by row wherever its term may."""
        return True

    def prepare(self, kept: Slots, w: Weight) -> Slots:
        """Nothing can be done before a checkpoint is there."""
        return NOTHING

    def fold(self, kept: Slots, u: Update, w: Weight, before: int, prepared: Slots) -> Folded:
        """Add the checkpoint's term, as often as its share says."""
        return self._added(kept, u, w, u.share)

    def remove(self, kept: Slots, u: Update, w: Weight) -> Folded:
        """Take the checkpoint's term out again; exact but for rounding."""
        return self._added(kept, u, w, -u.share)

    def _added(self, kept: Slots, u: Update, w: Weight, share: float) -> Folded:
        terms = self.term(u, w).items()
        return Folded({name: kept[name].add(term.to(kept[name].dtype), alpha=share) for name, term in terms})


@dataclass(frozen=True)
class TaskSum(Sum):
    """The sum of the task vectors, weighted by share."""

    def slots(self, w: Weight) -> Mapping[str, SlotSpec]:
        """One slot in the weight's shape."""
        return {"sum": SlotSpec(w.shape)}

    def term(self, u: Update, w: Weight) -> Slots:
        """Return the task vector."""
        return {"sum": u.delta}


class Rule(Protocol):
    """How the merged task vector is read out; a frozen dataclass whose fields are the rule's parameters.

    A field whose name Python reserves ends in an underscore here, and not in a configuration.
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]

    def keeps(self, w: Weight) -> tuple[Statistic, ...]:
        """Return the statistics that this rule reads for weight `w`."""
        ...

    def rowwise(self, w: Weight) -> bool:
        """Whether `merged` may be given blocks of rows in place of the whole weight."""
        ...

    def merged(self, kept: Mapping[Statistic, Slots], w: Weight, counts: Counts) -> Tensor:
        """Return the read-out in the weight's shape; a slot itself where that is what is read.

        The norms are not known yet: they are gathered from the read-outs themselves.
        """
        ...

    def scale(self, totals: Totals) -> float:
        """Return the factor of the published task vector: published = base + scale x read-out."""
        ...


class ReadsTaskSum:
    """A rule that reads the sum of the task vectors as it is; a subclass writes `scale` alone."""

    def keeps(self, w: Weight) -> tuple[Statistic, ...]:
        """Return the sum of the task vectors, for every weight."""
        return (TaskSum(),)

    def rowwise(self, w: Weight) -> bool:
        """Always: the read-out is the slot."""
        return True

    def merged(self, kept: Mapping[Statistic, Slots], w: Weight, counts: Counts) -> Tensor:
        """Return the sum, in the weight's shape."""
        return kept[TaskSum()]["sum"]
