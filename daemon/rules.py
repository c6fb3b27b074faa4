"""The installed rules as facts: what each does, what it keeps of which weights, what that takes, and what it asks for.

Reads no checkpoint and no state: the weights' names, shapes and kinds are enough.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields
from functools import cache
from inspect import cleandoc
from math import prod
from typing import Any, Literal, get_args, get_origin, get_type_hints

from ..plugins.registry import load, names, package
from ..plugins.rules.batch_interface import is_batch
from ..plugins.rules.interface import Statistic, Sum
from ..state.errors import MergdError
from ..state.records import Weight
from .base import float32_bytes
from .method import Method, make_rule, method_of
from .slots import reads_slot

# What a rule is asked about where there is no base model: matrices of each form, and a weight of each other kind.
FORMS = {
    "square": Weight("square", (4096, 4096), "matrix"),
    "1:4": Weight("wide", (4096, 16384), "matrix"),
    "4:1": Weight("tall", (16384, 4096), "matrix"),
}
EXAMPLES = (
    *FORMS.values(),
    Weight("convolution", (64, 32, 3, 3), "convolution"),
    Weight("lookup", (32000, 4096), "lookup"),
    Weight("bias", (4096,), "other"),
)
UNKNOWN: Mapping[str, Any] = {
    "does": "",
    "description": "",
    "source": "",
    "parameters": [],
    "remerge_only": None,
    "statistics": [],
    "surveys": [],
    "passes": None,
    "needs": [],
    "seeded": None,
    "order_matters": None,
    "exact_removal": None,
    "read_by": [],
    "slots_bytes": None,
    "spilled_bytes": None,
    "version_bytes": None,
    "multiple": None,
    "multiples": {},
    "spilled_multiples": {},
    "larger": None,
    "error": None,
}


@dataclass(frozen=True)
class Alike:
    """The weights of one shape and kind, which a rule treats alike."""

    weight: Weight  # the first of them
    names: tuple[str, ...]


def alike(weights: Iterable[Weight]) -> tuple[Alike, ...]:
    """Return weights by shape and kind: a large model has tens of thousands of them, and a few dozen of these."""
    found: dict[tuple[Any, ...], list[Weight]] = {}
    for w in weights:
        found.setdefault((w.kind, w.shape), []).append(w)
    return tuple(Alike(same[0], tuple(w.name for w in same)) for same in found.values())


def describe(
    name: str, groups: Sequence[Alike] = (), model_bytes: int = 0, configured: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return all there is to say about one rule; what could not be found out is empty, and `error` says why.

    groups: the weights of a base model, of which a published model takes `model_bytes`; none: what is said is about FORMS.
    configured: the method that a configuration describes, if it is by this rule; else the rule is as by default.
    """
    facts = {"rule": name, "package": package("rules", name), **UNKNOWN}
    try:
        kind = load("rules", name)
        facts |= _told(kind)
        if is_batch(kind):
            make_rule(name, {})
            return facts | {"remerge_only": True}
        method = method_of(configured or {"rule": name})
        facts |= _asked(method, groups or alike(EXAMPLES))
        facts |= _sizes(method, groups, model_bytes) if groups else _multiples(method)
    except Exception as error:  # noqa: BLE001 - whatever is wrong with one package's rule, the others are shown
        facts["error"] = str(error) if isinstance(error, MergdError) else f"{type(error).__name__}: {error}"
    return facts


# ------------------------------------------------------------------------------------------------- what its class says


def _told(kind: type[Any]) -> dict[str, Any]:
    """Return what a rule's class says of itself."""
    text = cleandoc(kind.__doc__ or "")
    if text.startswith(f"{kind.__name__}("):  # what a dataclass writes where nobody did
        text = ""
    hints = get_type_hints(kind)
    return {
        "does": text.partition("\n")[0],
        "description": text,
        "source": str(getattr(kind, "source", "")),
        "parameters": [
            {"name": field.name.rstrip("_"), "type": _type(hints[field.name]), **_default(field)}
            for field in fields(kind)
        ],
        "remerge_only": False,
    }


def _type(hint: Any) -> str:
    """Return a type as people read it; of one with choices, those."""
    if get_origin(hint) is Literal:
        return " | ".join(map(str, get_args(hint)))
    return hint.__name__ if isinstance(hint, type) and not get_args(hint) else str(hint)


def _default(field: "Field[Any]") -> dict[str, Any]:
    if field.default_factory is not MISSING:
        return {"default": field.default_factory(), "required": False}
    return {"default": None if field.default is MISSING else field.default, "required": field.default is MISSING}


# ---------------------------------------------------------------------------------------------- what it says of weights


def _asked(method: Method, groups: Sequence[Alike]) -> dict[str, Any]:
    """Return what a rule keeps and asks for."""
    weights = tuple(group.weight for group in groups)
    statistics = {s for w in weights for s in method.keeps(w)}
    surveys = method.surveys(weights)
    return {
        "statistics": _statistics(method, groups),
        "surveys": [{"survey": repr(survey), "passes": survey.passes} for survey in surveys],
        "passes": max((survey.passes for survey in surveys), default=0),
        "needs": sorted(method.needs(weights)),
        "seeded": any("seed" in statistic.needs for statistic in statistics),
        "order_matters": any(statistic.ordered for statistic in statistics),
        "exact_removal": all(isinstance(statistic, Sum) for statistic in statistics),
        "read_by": [name for name in names("rules") if name != method.name and _reads(name, method, weights)],
    }


def _reads(name: str, method: Method, weights: tuple[Weight, ...]) -> bool:
    """Whether another rule, as by default, reads what a method keeps."""
    try:
        rule = _by_default(name)
        return not is_batch(rule) and not method.cannot_read(rule, weights)
    except Exception:  # noqa: BLE001 - what is wrong with it is said where it is described itself
        return False


@cache
def _by_default(name: str) -> Any:
    return make_rule(name, {})


def _statistics(method: Method, groups: Sequence[Alike]) -> list[dict[str, Any]]:
    """Return each statistic by the kind of weight that it is kept for, with its slots of the largest of them."""
    found: dict[tuple[str, Statistic], list[Alike]] = {}
    for group in groups:
        for statistic in method.keeps(group.weight):
            found.setdefault((group.weight.kind, statistic), []).append(group)
    return [_statistic(kind, statistic, kept) for (kind, statistic), kept in found.items()]


def _statistic(kind: str, statistic: Statistic, groups: list[Alike]) -> dict[str, Any]:
    largest = max((group.weight for group in groups), key=lambda w: w.size)
    return {
        "kind": kind,
        "statistic": repr(statistic),
        "weights": sum(len(group.names) for group in groups),
        "bytes": sum(len(g.names) * slot.nbytes for g in groups for slot in statistic.slots(g.weight).values()),
        "example": {"weight": largest.name, "shape": list(largest.shape)},
        "slots": {
            name: {"shape": list(slot.shape), "dtype": slot.dtype, "bytes": slot.nbytes}
            for name, slot in statistic.slots(largest).items()
        },
    }


# ------------------------------------------------------------------------------------------------------- what it takes


def _sizes(method: Method, groups: Sequence[Alike], model_bytes: int) -> dict[str, Any]:
    """Return what a version of a base model takes, in bytes."""
    folded = sum(len(group.names) * float32_bytes(group.weight.shape) for group in groups)
    slots = sum(len(group.names) * kept_bytes(method, group.weight) for group in groups)
    spilled = sum(len(g.names) * float32_bytes(g.weight.shape) for g in groups if not reads_slot(method, g.weight))
    return {
        "slots_bytes": slots,
        "spilled_bytes": spilled,
        "version_bytes": slots + model_bytes,
        "multiple": slots / folded if folded else None,
        "larger": _larger(method, groups, slots),
    }


def _larger(method: Method, groups: Sequence[Alike], slots_bytes: int) -> dict[str, Any] | None:
    """Return whose slots are larger than the weight itself, and their share of all; None where there are none.

    A Gram matrix of a weight's long side is such a slot.
    """
    found = {group: larger_bytes(method, group.weight) for group in groups}
    total = sum(len(group.names) * nbytes for group, nbytes in found.items())
    names = [name for group, nbytes in found.items() if nbytes for name in group.names]
    return {"bytes": total, "share": total / slots_bytes, "weights": patterns(names)} if total else None


def _multiples(method: Method) -> dict[str, Any]:
    """Return what is kept, and spilled while one is folded, of a matrix of each form: in multiples of it in float32."""
    return {
        "multiples": {form: kept_bytes(method, w) / float32_bytes(w.shape) for form, w in FORMS.items()},
        "spilled_multiples": {form: 0 if reads_slot(method, w) else 1 for form, w in FORMS.items()},
    }


def kept_bytes(method: Method, w: Weight) -> int:
    """Return what the slots of one weight take."""
    return sum(slot.nbytes for statistic in method.keeps(w) for slot in statistic.slots(w).values())


def larger_bytes(method: Method, w: Weight) -> int:
    """Return what those slots of one weight take that hold more numbers than the weight."""
    slots = (slot for statistic in method.keeps(w) for slot in statistic.slots(w).values())
    return sum(slot.nbytes for slot in slots if prod(slot.shape) > w.size)


def patterns(names: Iterable[str]) -> dict[str, int]:
    """Return names with their numbers as `*`, and how many there are of each: blocks of a network are called alike."""
    found: dict[str, int] = {}
    for name in names:
        pattern = re.sub(r"(?<![^.])\d+(?![^.])", "*", name)
        found[pattern] = found.get(pattern, 0) + 1
    return found
