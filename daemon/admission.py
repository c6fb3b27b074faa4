"""Admission: from headers alone, does this belong to the base model? A pure comparison of two layouts."""

from pathlib import Path

from ..state.errors import Refused
from ..state.headers import FLOATING
from ..state.records import ADMITTED, Candidate, Layout, Reason, Sighting, Verdict
from .base import Base, read_layout

SHOWN = 10  # names in a reason


def examine(sighting: Sighting, base: Base) -> tuple[Candidate | None, Verdict]:
    """Return the candidate that lies at a sighting's place, and the verdict on its headers.

    Raises Busy while it is not complete, and NotPermitted where it cannot be read: neither is a verdict.
    """
    try:
        layout = read_layout(Path(sighting.place))
    except Refused as refusal:
        return None, Verdict("refused", refusal.reasons)
    candidate = Candidate(sighting.place, sighting.name, layout, sighting.stamps)
    return candidate, compare(layout, base)


def compare(layout: Layout, base: Base) -> Verdict:
    """Admit weights with the names and shapes of the base's, in any floating dtype; refuse with every reason there is."""
    reasons = [reason for reason in (_missing(layout, base), _extra(layout, base), _shapes(layout, base)) if reason]
    reasons += [reason for reason in (_dtypes(layout, base),) if reason]
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
        if name in folded and info.dtype not in FLOATING
    ]
    if not wrong:
        return None
    return Reason("dtype", _some(wrong), "float64, float32, float16 or bfloat16", "save it without quantising")


def _some(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
