"""What is shipped beside a checkpoint's weights for methods that need it: found by admission, read along with the fold.

Each is a file in the checkpoint's folder, `fisher.safetensors`, of the weights' own names and shapes.
"""

from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ..plugins.formats.interface import Candidate, Contents, Shipped, Whole
from ..plugins.rules.interface import NOTHING, Slots
from ..state.digests import digest_of
from ..state.errors import Refused
from ..state.headers import FLOATING, layout_of
from ..state.reading import ContentDigest, Reader
from ..state.records import Reason, TensorInfo, Weight
from ..state.wording import shown
from .base import Base
from .links import link_elsewhere
from .matching import match, some
from .settings import Settings

NOT_NEGATIVE = ("fisher",)  # a sum of squares
EXPECTED = "{} in its folder, with each weight that it changes under the same name and in the same shape"
NEXT_STEP = (
    "save it beside the weights: the mean of the squared gradients (a diagonal Fisher) or an optimiser's second moment,"
    " for an adapter too of the full weights"
)


# --------------------------------------------------------------------------------------------------------- admission


@dataclass(frozen=True)
class Looking:
    """What is looked for beside the checkpoints of one merge, and under which policies."""

    base: Base
    settings: Settings
    most: int  # tensors in a file
    needs: Mapping[str, Collection[str]]  # by weight: what must be there
    besides: Mapping[str, Collection[str]]  # by weight: what is taken where it is there

    def beside(self, place: Path, changed: Collection[str]) -> tuple[dict[str, Shipped], list[Reason]]:
        """Return what lies beside a checkpoint's weights, and why what is needed is not there.

        changed: the weights that the checkpoint changes. For others nothing need be shipped, and then it is zero. Raises
        Busy while a file is not complete, and what else `layout_of` raises.
        """
        found: dict[str, Shipped] = {}
        reasons: list[Reason] = []
        for name in sorted({name for each in (self.needs, self.besides) for names in each.values() for name in names}):
            file = f"{name}.safetensors"
            wrong = _out_of_reach(place, file)
            if not wrong:
                found[name], wrong = self._fitted(name, place / file, changed)
            if wrong:
                found.pop(name, None)
            if wrong and self._is_needed(name):
                reasons.append(Reason("needs-fisher", "; ".join(wrong), EXPECTED.format(file), NEXT_STEP))
        return found, reasons

    def _is_needed(self, name: str) -> bool:
        return any(name in names for names in self.needs.values())

    def _fitted(self, name: str, path: Path, changed: Collection[str]) -> tuple[Shipped, list[str]]:
        """Return the tensors that are for the weights that need them, or for all, and what is wrong with them."""
        layout = layout_of([path], self.most)
        fits = match(replace(Contents.whole(layout), partial=True), self.base, self.settings, path.parent)
        needed = self.needs if self._is_needed(name) else self.besides
        wanted = {weight for weight, names in needed.items() if name in names}
        parts = {weight: part for weight, part in fits.parts.items() if weight in wanted}
        shapes = [f"{weight} {list(getattr(part, 'shape', ()))}" for weight, part, _ in fits.shapes if weight in wanted]
        shapes += [
            f"{weight} with {rows} rows for {ours}" for weight, rows, ours in fits.vocabulary if weight in wanted
        ]
        missing = [weight for weight in self.needs if weight in wanted & set(changed) and weight not in parts]
        used = [layout.tensors[tensor] for part in parts.values() for tensor in part.tensors]
        dtypes = [f"{info.name} of {info.dtype}" for info in used if info.dtype not in FLOATING]
        wrong = [f"{path.name} with other shapes: {some(shapes)}"] if shapes else []
        wrong += [f"{path.name} without {some(missing)}"] if missing else []
        wrong += [f"{path.name} with {some(dtypes)}"] if dtypes else []
        return Shipped(layout, parts), wrong


def _out_of_reach(place: Path, file: str) -> list[str]:
    """Return why a file cannot be there, is not there, or is not the checkpoint's own; nothing if it is."""
    if not place.is_dir():
        return [f"a lone file, beside which there can be no {file}"]
    if link := link_elsewhere(place, [str(place / file)]):
        return [link.found]
    return [] if (place / file).exists() else [f"no {file}"]


# ----------------------------------------------------------------------------------------------------------- the fold


class Shipping:
    """Reads what is shipped with one candidate, in step with its weights; each tensor is hashed once."""

    def __init__(self, candidate: Candidate, stack: ExitStack) -> None:
        self._candidate = candidate
        self._readers = {
            name: stack.enter_context(Reader(shipped.layout, feed=candidate.feed))
            for name, shipped in candidate.shipped.items()
        }
        self._content = ContentDigest()

    @property
    def nbytes(self) -> int:
        """Bytes read so far."""
        return sum(reader.nbytes for reader in self._readers.values())

    def opened_as_sighted(self) -> bool:
        """Whether each file was, when it was opened, the one that admission looked into."""
        return all(
            reader.opened_as(self._candidate.stamps) and layout_of(reader.layout.files) == reader.layout
            for reader in self._readers.values()
        )

    def same_as_before(self) -> bool:
        """Whether no file was changed or replaced since it was opened."""
        return all(reader.same_as_before() for reader in self._readers.values())

    def of(self, w: Weight, rows: tuple[int, int] | None, needs: Collection[str]) -> Slots:
        """Return what is shipped for one weight, or a block of its rows, float32; zero where there is nothing.

        Raises Refused for numbers that it cannot have.
        """
        return {name: self._block(name, w, rows) for name in self._readers if name in needs} if needs else NOTHING

    def _block(self, name: str, w: Weight, rows: tuple[int, int] | None) -> Tensor:
        first, last = rows or (0, w.shape[0] if w.shape else 1)
        block = torch.zeros((last - first, *w.shape[1:]) if w.shape else ())
        part = self._candidate.shipped[name].parts.get(w.name)
        if not isinstance(part, Whole):
            return block
        shared = last if part.rows is None else max(first, min(last, part.rows))
        stored = self._readers[name].read(part.tensor, rows if part.rows is None else (first, shared))
        self._add(self._named(name, part), stored)
        values = stored.float()
        _check(name, w, values)
        if shared == last:
            return values
        block[: shared - first] = values
        return block

    # ------------------------------------------------------------------------------------------------- the digest

    def _add(self, info: TensorInfo, block: Tensor) -> None:
        if self._content.begin(info) < info.nbytes:
            self._content.add(info, block)

    def _named(self, name: str, part: Whole) -> TensorInfo:
        """Return a tensor as the digest has it: no weight's."""
        return replace(self._candidate.shipped[name].layout.tensors[part.tensor], name=f"{name}:{part.tensor}")

    def read_the_rest(self, memory: int) -> None:
        """Read what was not read yet, for the digest alone, in pieces of at most `memory` bytes."""
        for name, part in self._parts():
            info = self._named(name, part)
            for piece in self._readers[name].pieces(part.tensor, memory, self._content.begin(info)):
                self._content.add(info, piece)

    def _parts(self) -> Iterator[tuple[str, Whole]]:
        each = ((name, part) for name, shipped in self._candidate.shipped.items() for part in shipped.parts.values())
        return ((name, part) for name, part in each if isinstance(part, Whole))

    def digest_with(self, weights: str) -> str:
        """Return the digest of the whole content, given that of the weights. All must have been read.

        It is the weights' own where nothing is shipped, or nothing of that is needed.
        """
        if not self._readers:
            return weights
        return digest_of(f"{weights}\n{self._content.hexdigest()}".encode())


def _check(name: str, w: Weight, values: Tensor) -> None:
    """Raise Refused for numbers that are not finite, or negative where they are sums of squares."""
    wrong = "NaN or infinity" if not bool(values.isfinite().all()) else ""
    if not wrong and name in NOT_NEGATIVE and bool((values < 0).any()):
        wrong = "numbers below 0"
    if wrong:
        found = f"{wrong} in {name}.safetensors, {shown(w.name)}"
        raise Refused(Reason("needs-fisher", found, "finite numbers, none of them below 0", NEXT_STEP))
