"""What a format is: it knows, from names and headers alone, what a checkpoint of its kind looks like on disk."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from torch import Tensor

from ...state.feeding import Feed
from ...state.headers import MAX_TENSORS
from ...state.records import FileStamp, Layout
from ..rules.interface import LowRank

Read = Callable[[str], Tensor]  # gives a tensor by its name in the checkpoint's files, as it is stored


class Part(Protocol):
    """What a checkpoint says about one weight; a frozen dataclass, whose fields say how its task vector is formed."""

    @property
    def tensors(self) -> tuple[str, ...]:
        """Return the names of the tensors that it is formed from, as the checkpoint's files have them."""
        ...

    @property
    def strength(self) -> tuple[int, float]:
        """Return the rank of its factors and what their product is scaled by; zeros where it has no factors."""
        ...

    def fit(self, shape: tuple[int, ...], turned: bool | None = None) -> "Part | None":
        """Return this part, turned as a weight of that shape needs it; None where it does not fit.

        turned: whether the base model stores this linear map as (in, out), where that is known.
        """
        ...

    def task_vector(self, read: Read, base: Callable[[], Tensor]) -> Tensor | LowRank:
        """Return the task vector, float32 or float64, in the shape that it was fitted to.

        `base` gives the base model's weight to the formulas that need it; it is not read for the others.
        """
        ...


def factor_rank(part: Part) -> int | None:
    """Return how many columns the two factors of a part's task vector have; None unless it says that it always gives two.

    A part says so by an attribute `factor_rank`.
    """
    rank = getattr(part, "factor_rank", None)
    return rank if isinstance(rank, int) else None


@dataclass(frozen=True)
class Whole:
    """A weight's new values, as one tensor: these stream by in blocks of rows."""

    tensor: str
    shape: tuple[int, ...]  # in the file
    rows: int | None = None  # how many of them count, where a vocabulary of another size shares only the first

    @property
    def tensors(self) -> tuple[str, ...]:
        """One."""
        return (self.tensor,)

    @property
    def strength(self) -> tuple[int, float]:
        """It has no factors."""
        return 0, 0.0

    def fit(self, shape: tuple[int, ...], turned: bool | None = None) -> "Whole | None":
        """It fits its own shape."""
        return self if shape == self.shape else None

    def task_vector(self, read: Read, base: Callable[[], Tensor]) -> Tensor:
        """Return the new values minus the base model's."""
        return read(self.tensor).float() - base().float()


@dataclass(frozen=True)
class Contents:
    """What lies at a place: its tensors, and what they say about which weights."""

    layout: Layout
    parts: Mapping[str, Part]  # by the name of the weight, as the checkpoint calls it
    partial: bool = False  # weights that it does not name are the base model's, as for an adapter
    config: Mapping[str, object] = field(default_factory=dict)  # its config.json, or adapter_config.json

    @staticmethod
    def whole(layout: Layout, config: Mapping[str, object] | None = None) -> "Contents":
        """Return the contents of a full model: each tensor is a weight."""
        return Contents(layout, {n: Whole(n, info.shape) for n, info in layout.tensors.items()}, config=config or {})

    @property
    def formulas(self) -> str:
        """What makes this content besides its tensors: which of them make what, and their scales; it enters the digest.

        The same text for ever, so that a checkpoint that was folded is known by every later version of mergd.
        """
        formed = ((name, part) for name, part in sorted(self.parts.items()) if not isinstance(part, Whole))
        return "\n".join(json.dumps([name, part.tensors, part.strength[1]]) for name, part in formed)


@dataclass(frozen=True)
class Shipped:
    """Tensors that lie beside a checkpoint's weights, one for a weight, such as a diagonal Fisher."""

    layout: Layout
    parts: Mapping[str, Part]  # by the base model's name; what is not named is zero


@dataclass(frozen=True)
class Candidate:
    """A sighting that admission let through: its headers fit the base model; its content is not read yet."""

    place: str
    name: str
    contents: Contents
    parts: Mapping[str, Part]  # by the base model's name; what is not named has a task vector of zero
    stamps: tuple[FileStamp, ...]
    aliases: Mapping[str, str] = field(default_factory=dict)  # tensors that must hold the same bytes: a tied pair
    shipped: Mapping[str, Shipped] = field(
        default_factory=dict
    )  # what the method needs besides, by its name ("fisher")
    folder: str = ""  # where its files lie on this disk, if that is not its place
    feed: Feed | None = field(default=None, compare=False)  # what gives the bytes of files that have holes there

    @property
    def here(self) -> Path:
        """Where its files lie on this disk."""
        return Path(self.folder or self.place)

    def among(self, readers: int) -> "Candidate":
        """Return it for one of so many that are read at once."""
        return replace(self, feed=self.feed.among(readers)) if self.feed is not None else self

    def until(self, stopped: Callable[[], bool]) -> "Candidate":
        """Return it for work that may be told to stop while bytes are awaited."""
        return replace(self, feed=self.feed.until(stopped)) if self.feed is not None else self


class Format(Protocol):
    """One kind of checkpoint on disk."""

    def recognises(self, place: Path) -> bool:
        """Whether what lies there is of this kind, by names alone."""
        ...

    def contents(self, place: Path, most: int = MAX_TENSORS) -> Contents:
        """Return where the tensors lie, at most so many, and what they mean, from headers alone.

        Raises Busy, saying what is waited for, while something is still missing; NotPermitted where a file cannot be
        read; Refused where no waiting helps.
        """
        ...
