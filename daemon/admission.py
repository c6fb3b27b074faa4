"""Admission: from headers alone, does this belong to the base model? A pure comparison of two layouts."""

from pathlib import Path

from ..state.errors import Refused
from ..state.headers import COUNTING, FLOATING
from ..state.records import ADMITTED, Candidate, Layout, Reason, Sighting, Verdict
from ..state.wording import shown, size
from .base import Base, read_layout

SHOWN = 10  # names in a reason
ROOM = 64 * 2**20  # bytes of tensors beside the weights that are let through, however small the base model is


def examine(sighting: Sighting, base: Base) -> tuple[Candidate | None, Verdict]:
    """Return the candidate that lies at a sighting's place, and the verdict on its headers.

    Raises Busy while it is not complete, and NotPermitted where it cannot be read: neither is a verdict.
    """
    try:
        layout = read_layout(Path(sighting.place), most_tensors(base))
    except Refused as refusal:
        return None, Verdict("refused", refusal.reasons)
    candidate = Candidate(sighting.place, sighting.name, layout, sighting.stamps)
    return candidate, compare(layout, base)


def most_tensors(base: Base) -> int:
    """Return how many tensors a checkpoint may have; one that has more is refused before they cost memory."""
    return max(4 * len(base.layout.tensors), len(base.layout.tensors) + 1000)


def compare(layout: Layout, base: Base) -> Verdict:
    """Admit weights with the names and shapes of the base's, in any floating dtype; refuse with every reason there is."""
    reasons = [reason for reason in (_missing(layout, base), _extra(layout, base), _shapes(layout, base)) if reason]
    reasons += [reason for reason in (_dtypes(layout, base), _beside(layout, base)) if reason]
    return Verdict("refused", tuple(reasons)) if reasons else ADMITTED


def _missing(layout: Layout, base: Base) -> Reason | None:
    names = [weight.name for weight in base.weights if weight.name not in layout.tensors]
    if not names:
        return None
    found = f"{len(names)} of {len(base.weights)} weights missing: {_some(names)}"
    return Reason("missing-weights", found, "every weight of the base model", "save the whole model, not a part of it")


def _extra(layout: Layout, base: Base) -> Reason | None:
    names = [n for n, info in layout.tensors.items() if n not in base.layout.tensors and info.dtype in FLOATING]
    if not names:
        return None
    found = f"{len(names)} weights that the base model has not: {_some(names)}"
    return Reason("extra-weights", found, "the base model's weights alone", "save without added heads or adapters")


def _shapes(layout: Layout, base: Base) -> Reason | None:
    known = base.layout.tensors
    wrong = [
        f"{name} {list(info.shape)} for {list(known[name].shape)}"
        for name, info in layout.tensors.items()
        if name in known and info.shape != known[name].shape
    ]
    if not wrong:
        return None
    return Reason("shape", _some(wrong), "the base model's shapes", "fine-tune this base model, not one like it")


def _dtypes(layout: Layout, base: Base) -> Reason | None:
    folded = {weight.name for weight in base.weights} | set(base.tied)
    wrong = [
        f"{name} is {info.dtype}"
        for name, info in layout.tensors.items()
        if info.dtype not in FLOATING and (name in folded or info.dtype not in COUNTING)
    ]
    if not wrong:
        return None
    return Reason("dtype", _some(wrong), "float64, float32, float16 or bfloat16", "save it without quantising")


def _beside(layout: Layout, base: Base) -> Reason | None:
    """Bound what is read for the digest alone."""
    nbytes = sum(info.nbytes for name, info in layout.tensors.items() if name not in base.layout.tensors)
    room = max(base.layout.nbytes, ROOM)
    if nbytes <= room:
        return None
    found = f"{size(nbytes)} of tensors that the base model has not"
    return Reason("too-large", found, f"at most {size(room)} of them", "save the base model's weights alone")


def _some(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(shown(name) for name in names[:SHOWN]) + more
