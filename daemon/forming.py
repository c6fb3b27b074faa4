"""Forming: a candidate's tensors become task vectors, weight by weight and block by block; each tensor is hashed once."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack

import torch
from torch import Tensor

from ..plugins.formats.interface import Candidate, Part, Whole, factor_rank
from ..plugins.rules.interface import LowRank
from ..state.errors import Busy, Refused
from ..state.reading import ContentDigest, Reader
from ..state.records import Reason, TensorInfo, Weight
from .base import Rows
from .progress import Progress
from .shipped import Shipping

READING = 2**24  # bytes at a time, of what is read for a seed


class Forming:
    """Forms the task vectors of one candidate, over open files; `hashed`: whether what is read enters its digest."""

    def __init__(self, candidate: Candidate, base: Reader, reader: Reader, *, hashed: bool = True) -> None:
        self._candidate, self._base, self._reader, self._hashed = candidate, base, reader, hashed
        self._tensors = candidate.contents.layout.tensors
        self._content = ContentDigest(candidate.contents.formulas)
        self._formed: tuple[str, Tensor | LowRank] | None = None  # the weight whose formula was formed last

    def of(self, w: Weight, blocks: Sequence[Rows], dtype: torch.dtype) -> Iterator[tuple[Rows, Tensor | LowRank]]:
        """Yield each block of the task vector of one weight, in `dtype`."""
        return ((rows, self.block(w, rows, dtype)) for rows in blocks)

    def block(self, w: Weight, rows: Rows, dtype: torch.dtype) -> Tensor | LowRank:
        """Return one block of the task vector of one weight: new values stream by, a formula is formed once."""
        part = self._candidate.parts.get(w.name)
        if isinstance(part, Whole):
            return self._difference(w, part, rows, dtype)
        if self._formed is None or self._formed[0] != w.name:
            self._formed = None  # before the next one is
            self._formed = w.name, self._form(w, part).to(dtype)
        return _rows_of(self._formed[1], rows)

    def _form(self, w: Weight, part: Part | None) -> Tensor | LowRank:
        if part is not None:
            return part.task_vector(self._read, lambda: self._base.read(w.name))
        return LowRank.zero(w.shape) if len(w.shape) > 1 else torch.zeros(w.shape)

    def rank(self, w: Weight) -> int | None:
        """Return how many columns the factors of one weight's task vector have; None where it is given whole."""
        part = self._candidate.parts.get(w.name)
        return factor_rank(part) if part is not None else 0

    def _difference(self, w: Weight, part: Whole, rows: Rows, dtype: torch.dtype) -> Tensor:
        """Return new values minus the base's for one block; zero below the rows that count."""
        first, last = rows or (0, w.shape[0] if w.shape else 1)
        shared = last if part.rows is None else max(first, min(last, part.rows))
        theta = self._reader.read(part.tensor, rows if part.rows is None else (first, shared))
        self._add(self._tensors[part.tensor], theta)
        stored = self._base.dtype_of(w.name)
        wide = torch.float64 if torch.float64 in (dtype, stored, theta.dtype) else torch.float32
        delta = theta.to(wide)
        for part_rows, theta0 in self._base.parts(w.name, (first, shared) if w.shape else None):
            some = delta[part_rows[0] - first : part_rows[1] - first] if part_rows else delta
            some.sub_(theta0.to(wide))
        delta = delta.to(dtype)
        if shared == last:
            return delta
        padded = torch.zeros((last - first, *w.shape[1:]), dtype=dtype)
        padded[: shared - first] = delta
        return padded

    def _read(self, name: str) -> Tensor:
        tensor = self._reader.read(name)
        self._add(self._tensors[name], tensor)
        return tensor

    def _add(self, info: TensorInfo, block: Tensor) -> None:
        if self._hashed and self._content.begin(info) < info.nbytes:  # a seed may have needed all of it before
            self._content.add(info, block)

    def seed(self, w: Weight) -> int:
        """Return a number from a weight's name and the bytes that its task vector is formed from, 0 <= seed < 2^63.

        The same checkpoint gives it under any name and in any sharding. The bytes are read once more if they are many.
        """
        part = self._candidate.parts.get(w.name)
        tensors = part.tensors if part else ()
        for name in tensors:
            gather(self._content, self._reader, self._tensors[name], READING, None)
        text = json.dumps([w.name, [self._content.of(name) for name in tensors], part.strength[1] if part else 0])
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1

    # ------------------------------------------------------------------------------------------------ the whole content

    def read_the_rest(self, memory: int, progress: Progress) -> None:
        """Read what no task vector was formed from, for the digest alone, in pieces of at most `memory` bytes."""
        for info in self._tensors.values():
            gather(self._content, self._reader, info, memory, progress)

    def check_ties(self) -> None:
        """Raise Refused if what stands under both names of a tied weight differs. All must have been read."""
        for second, first in self._candidate.aliases.items():
            if self._content.of(second) != self._content.of(first):
                found = f"{second} differs from {first}, which the base model ties"
                raise Refused(Reason("untied", found, "one weight under two names", "save the checkpoint tied"))

    def hexdigest(self) -> str:
        """Return the digest of the candidate's content. All must have been read."""
        return self._content.hexdigest()


def content_digest(candidate: Candidate, memory: int, progress: Progress) -> str:
    """Return the digest of a candidate's content by reading all of it, without folding.

    Raises Busy if it changed or shrank meanwhile, Abandoned on request.
    """
    layout = candidate.contents.layout
    progress.begin("reading", len(layout.tensors), layout.nbytes)
    content = ContentDigest(candidate.contents.formulas)
    with ExitStack() as stack:
        reader, shipping = stack.enter_context(Reader(layout, feed=candidate.feed)), Shipping(candidate, stack)
        for info in layout.tensors.values():
            gather(content, reader, info, memory, progress)
            progress.advance(info.nbytes)
            progress.next_weight()
        shipping.read_the_rest(memory)
        opened = reader.opened_as(candidate.stamps) and shipping.opened_as_sighted()
        if not (opened and reader.same_as_before() and shipping.same_as_before()):
            raise Busy(f"{candidate.name} was changed while it was read")
    return shipping.digest_with(content.hexdigest())


def gather(content: ContentDigest, reader: Reader, info: TensorInfo, memory: int, progress: Progress | None) -> None:
    """Read for the digest alone what it has not seen of one tensor."""
    for piece in reader.pieces(info.name, memory, content.begin(info)):
        content.add(info, piece)
        if progress is not None:
            progress.advance(0)  # may end it


def _rows_of(delta: Tensor | LowRank, rows: Rows) -> Tensor | LowRank:
    if rows is None:
        return delta
    return delta.rows(*rows) if isinstance(delta, LowRank) else delta[rows[0] : rows[1]]
