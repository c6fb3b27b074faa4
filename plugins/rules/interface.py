"""What a fold rule is: statistics are what is kept of the checkpoints, a rule is how the merged task vector is read out.

Everything here is pure: no file, clock, log, thread or choice of device. docs/writing-a-rule.md shows how to write one.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import prod, sqrt
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from ...state.records import Counts, SlotSpec, Totals, Weight

Slots = Mapping[str, Tensor]
NOTHING: Slots = {}
COPIES = 4  # of a weight, float64, that most formulas have alive at once


@dataclass(frozen=True)
class LowRank:
    """A task vector as two factors: (B @ A) in `shape`. Nothing here forms the product but `dense`."""

    B: Tensor  # (..., m, r)
    A: Tensor  # (..., r, n)
    shape: tuple[int, ...]  # the weight's, or a block of its rows; of a convolution, n is all that follows the first

    @staticmethod
    def zero(shape: tuple[int, ...]) -> "LowRank":
        """Return a task vector of rank 0, for a weight that a checkpoint does not change."""
        *batch, m = shape[:1] if len(shape) > 3 else shape[:-1]
        n = prod(shape[len(batch) + 1 :])
        return LowRank(torch.zeros(*batch, m, 0), torch.zeros(*batch, 0, n), shape)

    @property
    def rank(self) -> int:
        """How many columns B has."""
        return self.B.shape[-1]

    def dense(self) -> Tensor:
        """Return the product, in `shape`."""
        return (self.B @ self.A).reshape(self.shape)

    def rows(self, first: int, last: int) -> "LowRank":
        """Return the rows `first` to `last` (exclusive) of the first dimension."""
        A = self.A[first:last] if self.A.ndim > 2 else self.A
        return LowRank(self.B[first:last], A, (last - first, *self.shape[1:]))

    def to(self, dtype: torch.dtype) -> "LowRank":
        """Return it with both factors in another dtype."""
        return LowRank(self.B.to(dtype), self.A.to(dtype), self.shape)

    def times(self, factor: float) -> "LowRank":
        """Return it multiplied by a number."""
        return LowRank(self.B * factor, self.A, self.shape)

    def norm(self) -> float:
        """Return the Frobenius norm: ||B A||^2 = sum of (B^T B) * (A A^T), in float64, at the cost of the factors."""
        B, A = self.B.double(), self.A.double()
        return sqrt(max(0.0, float(((B.mT @ B) * (A @ A.mT)).sum())))

    def dot(self, other: "Tensor | LowRank") -> float:
        """Return the inner product with a tensor of `shape`, in float64 of products in its dtype; or with other factors."""
        if isinstance(other, LowRank):
            return float(((self.B.mT @ other.B).double() * (self.A @ other.A.mT).double()).sum())
        left = self.B.mT.to(other.dtype) @ other.reshape(*self.B.shape[:-1], self.A.shape[-1])  # (..., r, n)
        return float((left.double() * self.A).sum())

    def added_to(self, other: Tensor, share: float = 1.0) -> Tensor:
        """Return other + share x (B @ A); `other` in `shape`, and in its own dtype."""
        if not self.rank or not other.numel():
            return other
        B, A = self.B.to(other.dtype), self.A.to(other.dtype)
        matrices = other.reshape(-1, B.shape[-2], A.shape[-1])
        B, A = B.reshape(-1, *B.shape[-2:]), A.reshape(-1, *A.shape[-2:])
        return torch.baddbmm(matrices, B, A, alpha=share).reshape(other.shape)


@dataclass(frozen=True)
class Update:
    """One checkpoint's news about one weight. A rule that has no use for factors reads `delta`, which is always there."""

    given: Tensor | LowRank  # float32 (float64 where a slot is), in the weight's shape or a block of its rows
    share: float = 1.0  # the checkpoint's weight; 2 means "as if folded twice"
    seed: int = 0  # of this weight's name and bytes, 0 <= seed < 2^63, where the statistic needs "seed"
    start: int = 0  # the place of the block's first number in the whole weight, row by row
    extra: Slots = field(
        default_factory=dict
    )  # what else the statistic needs, by name ("fisher"): float32, of these rows
    whole: "Mapping[Survey, Slots]" = field(default_factory=dict)  # what the statistic's surveys found

    @cached_property
    def delta(self) -> Tensor:
        """The task vector here, as one tensor; formed when it is first asked for."""
        return self.given.dense() if isinstance(self.given, LowRank) else self.given

    @property
    def factors(self) -> LowRank | None:
        """The task vector as two factors, where the checkpoint gives it so."""
        return self.given if isinstance(self.given, LowRank) else None


@dataclass(frozen=True)
class Folded:
    """A statistic's slots after a fold, and what it wants to be known about it."""

    slots: Slots  # a slot returned as the same object is unchanged
    split_rank: float = 0.0  # leading directions that were protected (mean over a batch of matrices)
    removed: float = 0.0  # squared Frobenius norm of what was not kept of the task vector
    margin: float = 0.0  # least distance of the split rank from being another one, as a share of the singular-value sum


@dataclass(frozen=True)
class FoldedFactors:
    """A statistic's one slot after a fold, where it is kept as two factors; the rest as `Folded` has it."""

    slot: LowRank
    split_rank: float = 0.0
    removed: float = 0.0
    margin: float = 0.0


class Survey(Protocol):
    """What must be known of the whole task vector before it is folded; a frozen dataclass: equal ones are made once.

    A sum over all weights, block by block, in one pass over the checkpoint or in several.
    """

    @property
    def passes(self) -> int:
        """How often the checkpoint is read for it."""
        ...

    def term(self, delta: Tensor, w: Weight, found: Slots) -> Slots:
        """Return what one block adds to the sums of this pass; `found`: what the pass before came to, nothing at first."""
        ...

    def found(self, sums: Slots, found: Slots) -> Slots:
        """Return what a pass came to."""
        ...


def added(slot: Tensor, u: Update) -> Tensor:
    """Return slot + share x task vector; a product of factors is formed nowhere but in there."""
    if u.factors is not None:
        return u.factors.added_to(slot, u.share)
    return slot.add(u.delta.reshape(slot.shape).to(slot.dtype), alpha=u.share)


class Statistic(Protocol):
    """What is kept of the checkpoints for one weight; a frozen dataclass: equal ones are one shared set of slots."""

    @property
    def needs(self) -> frozenset[str]:
        """What an update must have: "seed", or tensors that are shipped beside the checkpoint ("fisher")."""
        ...

    @property
    def surveys(self) -> tuple[Survey, ...]:
        """What must be known of the whole checkpoint before a fold."""
        ...

    @property
    def ordered(self) -> bool:
        """Whether another order of the same checkpoints gives other slots."""
        ...

    def slots(self, w: Weight) -> Mapping[str, SlotSpec]:
        """Return the slots by name. It is not told how many checkpoints were folded: constant by construction."""
        ...

    def rowwise(self, w: Weight) -> bool:
        """Whether `fold` may be given blocks of rows (of the first dimension) in place of the whole weight."""
        ...

    def working(self, w: Weight) -> int:
        """Return the bytes that a fold takes at most besides the task vector and the slots, old and new."""
        ...

    @property
    def factored(self) -> bool:
        """Whether its slot, the only one and in the weight's shape, may be kept as two factors while adapters alone are folded.

        Then it is a `Factored`.
        """
        ...

    def prepare(self, kept: Slots, w: Weight) -> Slots:
        """Return what a fold needs of `kept` alone, so that it can be computed before a checkpoint is there.

        Tensors without gaps, as `clone` gives them: they come back from a file with the same strides.
        """
        ...

    def fold(self, kept: Slots, u: Update, w: Weight, before: Counts, prepared: Slots) -> Folded:
        """Return the slots after update `u`; `before`: what was folded earlier. `prepared` may be empty."""
        ...


@runtime_checkable
class Factored(Protocol):
    """What a statistic does besides, if its slot may be kept as two factors: the sum of a few adapters has a small rank."""

    def prepare_factors(self, kept: LowRank, w: Weight) -> Slots:
        """Return what a fold needs of the slot alone, as `prepare` does."""
        ...

    def fold_factors(self, kept: LowRank, u: Update, D: LowRank, w: Weight, prepared: Slots) -> FoldedFactors:
        """Return the slot after an update by D; it has as many columns as both together."""
        ...


def working_bytes(w: Weight) -> int:
    """Return the bytes that most formulas of a weight fit into: float64 copies of it."""
    return 8 * COPIES * w.size


class _Kept:
    """What most statistics have in common: they need nothing but the task vector, and see each weight whole."""

    needs: ClassVar[frozenset[str]] = frozenset()
    ordered: ClassVar[bool] = False

    @property
    def surveys(self) -> tuple[Survey, ...]:
        """None."""
        return ()

    def rowwise(self, w: Weight) -> bool:
        """Not unless it says so: a block of rows alone may not tell what it adds."""
        return False

    def working(self, w: Weight) -> int:
        """A few float64 copies of the weight, unless it says so."""
        return working_bytes(w)

    @property
    def factored(self) -> bool:
        """Not unless it says so."""
        return False

    def prepare(self, kept: Slots, w: Weight) -> Slots:
        """Nothing can be done before a checkpoint is there."""
        return NOTHING

    def prepare_factors(self, kept: LowRank, w: Weight) -> Slots:
        """Nothing, here too."""
        return NOTHING


def prepares(statistic: Statistic) -> bool:
    """Whether anything can be done before a checkpoint is there."""
    nothing: object = _Kept.prepare
    return type(statistic).prepare is not nothing


class Sum(_Kept):
    """Every exact statistic: a sum over the checkpoints, in any order. A subclass writes `slots` and `term`."""

    def term(self, u: Update, w: Weight) -> Slots:
        """Return what one checkpoint adds to each slot, for a share of 1."""
        raise NotImplementedError

    def fold(self, kept: Slots, u: Update, w: Weight, before: Counts, prepared: Slots) -> Folded:
        """Add the checkpoint's term, as often as its share says."""
        return self._added(kept, u, w, u.share)

    def remove(self, kept: Slots, u: Update, w: Weight) -> Folded:
        """Take the checkpoint's term out again; exact but for rounding."""
        return self._added(kept, u, w, -u.share)

    def _added(self, kept: Slots, u: Update, w: Weight, share: float) -> Folded:
        terms = self.term(u, w).items()
        return Folded({name: kept[name].add(term.to(kept[name].dtype), alpha=share) for name, term in terms})


class Recurrence(_Kept):
    """Every other statistic: each fold starts from what the last one left. A subclass writes `slots` and `step`.

    A share of 2 is two steps, so that it means what it says whatever the formula.
    """

    ordered: ClassVar[bool] = True

    def step(self, kept: Slots, u: Update, w: Weight, before: Counts, prepared: Slots) -> Folded:
        """Return the slots after an update whose share is at most 1."""
        raise NotImplementedError

    def fold(self, kept: Slots, u: Update, w: Weight, before: Counts, prepared: Slots) -> Folded:
        """Take as many steps as the share says, the last one with what is left of it."""
        left, done = u.share - 1, self.step(kept, replace(u, share=min(u.share, 1.0)), w, before, prepared)
        while left > 0:
            before = Counts(before.folded, before.shares + 1)
            more = self.step(done.slots, replace(u, share=min(left, 1.0)), w, before, NOTHING)
            done, left = replace(more, removed=done.removed + more.removed), left - 1
        return done


@dataclass(frozen=True)
class TaskSum(Sum):
    """The sum of the task vectors, weighted by share."""

    def slots(self, w: Weight) -> Mapping[str, SlotSpec]:
        """One slot in the weight's shape."""
        return {"sum": SlotSpec(w.shape)}

    def working(self, w: Weight) -> int:
        """Nothing."""
        return 0

    @property
    def factored(self) -> bool:
        """The sum of factors is that of more columns."""
        return True

    def rowwise(self, w: Weight) -> bool:
        """Always."""
        return True

    def term(self, u: Update, w: Weight) -> Slots:
        """Return the task vector."""
        return {"sum": u.delta}

    def _added(self, kept: Slots, u: Update, w: Weight, share: float) -> Folded:
        """Add factors without forming their product aside."""
        return Folded({"sum": added(kept["sum"], replace(u, share=share))})

    def fold_factors(self, kept: LowRank, u: Update, D: LowRank, w: Weight, prepared: Slots) -> FoldedFactors:
        """Return both, side by side."""
        B, A = torch.cat([kept.B, u.share * D.B], 1), torch.cat([kept.A, D.A], 0)
        return FoldedFactors(LowRank(B, A, kept.shape))


class Rule(Protocol):
    """How it is read out; a frozen dataclass whose fields are the rule's parameters, whose docstring says what it does.

    A field whose name Python reserves ends in an underscore here, and not in a configuration.
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def source(self) -> str:
        """Where the method was published."""
        ...

    def keeps(self, w: Weight) -> tuple[Statistic, ...]:
        """Return the statistics that this rule reads for weight `w`."""
        ...

    def rowwise(self, w: Weight) -> bool:
        """Whether `merged` may be given blocks of rows in place of the whole weight; it costs little then, too."""
        ...

    def working(self, w: Weight) -> int:
        """Return the bytes that a read-out takes at most besides the slots."""
        ...

    def merged(self, kept: Mapping[Statistic, Slots], w: Weight, counts: Counts) -> Tensor:
        """Return the read-out in the weight's shape; a slot itself where that is what is read.

        The norms are not known yet: they are gathered from the read-outs themselves.
        """
        ...

    def scale(self, totals: Totals) -> float:
        """Return the factor of the published task vector: published = base + scale x read-out."""
        ...


class ReadOut:
    """What most rules have in common; a subclass writes `keeps` and `merged`."""

    source: ClassVar[str] = ""

    def rowwise(self, w: Weight) -> bool:
        """Not unless it says so."""
        return False

    def working(self, w: Weight) -> int:
        """A few float64 copies of the weight, unless it says so."""
        return working_bytes(w)

    def scale(self, totals: Totals) -> float:
        """Return 1: the read-out is the merged task vector."""
        return 1.0


class ReadsTaskSum(ReadOut):
    """A rule that reads the sum of the task vectors as it is; a subclass writes `scale` alone."""

    def working(self, w: Weight) -> int:
        """Nothing: the read-out is the slot."""
        return 0

    def keeps(self, w: Weight) -> tuple[Statistic, ...]:
        """Return the sum of the task vectors, for every weight."""
        return (TaskSum(),)

    def rowwise(self, w: Weight) -> bool:
        """Always: the read-out is the slot."""
        return True

    def merged(self, kept: Mapping[Statistic, Slots], w: Weight, counts: Counts) -> Tensor:
        """Return the sum, in the weight's shape."""
        return kept[TaskSum()]["sum"]


Others = Literal["mean", "sum"]  # how a matrix rule reads weights that are not matrices


def read_others(others: Others, kept: Mapping[Statistic, Slots], counts: Counts) -> Tensor:
    """Return the mean or the sum of the task vectors, of a weight of which a matrix rule keeps that alone."""
    total = kept[TaskSum()]["sum"]
    return total if others == "sum" or not counts.shares else total / counts.shares


def check_between(name: str, value: float, least: float, most: float) -> None:
    """Raise ValueError, naming the parameter, unless it lies between two bounds; it is never NaN."""
    if not least <= value <= most:
        raise ValueError(f"{name} must lie between {least:g} and {most:g}")


def check_one_of(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise ValueError, naming the parameter, unless it is one of the choices."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}")
