"""What is asked about the installed rules: of which base model, and which of them is in use."""

from collections.abc import Mapping
from typing import Any

from ..plugins.registry import load, names
from ..state.errors import MergdError, Misconfigured, NotPermitted
from .asking import open_history, store_to_look_at
from .base import Base, float32_bytes, locate, open_base, outline
from .publishing import model_bytes
from .rules import alike, describe
from .settings import Settings


def rules(settings: Settings | None, base_model: str | None, name: str | None) -> dict[str, Any]:
    """Return every installed rule, or the one of this name, by what it takes of a base model: that one, or the settings'.

    Whatever keeps the settings' base model from being read, is said in `trouble`: the rules are there without it.
    """
    if name is not None and name not in names("rules"):
        load("rules", name)  # raises, with the names that there are
    pins, used = _in_use(settings) if settings else ({}, {"rule": ""})
    base, trouble = None, ""
    try:
        base = _outlined(settings, pins, base_model)
    except MergdError as error:
        if base_model is not None:
            raise
        trouble = str(error)
    groups = alike(base.weights) if base else ()
    dtype, code = (settings.out_dtype, settings.copy_code) if settings else ("base", False)
    model = model_bytes(base, dtype, code) if base else 0
    found = [
        describe(rule, groups, model, used if rule == used["rule"] else None) | {"in_use": rule == used["rule"]}
        for rule in ([name] if name else names("rules"))
    ]
    return {
        "base": base and _facts_of(base, model, base_model or (settings.base_model if settings else "")),
        "trouble": trouble,
        "rules": found,
    }


def _outlined(settings: Settings | None, pins: Mapping[str, Any], base_model: str | None) -> Base | None:
    """Return a base model as its headers show it: the one of that name, else the settings'; None without either."""
    convolutions = settings.convolutions if settings else "sum"
    if base_model is not None:
        return outline(base_model, convolutions)
    if settings is None:
        return None
    if "base_norms" not in pins:
        return outline(settings.base_model, convolutions)
    return open_base(locate(settings.base_model, pins["base_commit"])[0], pins)


def _in_use(settings: Settings) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Return what init pinned, and the method by which the next checkpoint is folded.

    As the settings have it where there is no state yet, or we may not read it.
    """
    try:
        with open_history(store_to_look_at(settings)) as history:
            head = history.head()
            return history.pins(), (head.method if head else {}) or settings.method
    except (Misconfigured, NotPermitted):
        return {}, settings.method


def _facts_of(base: Base, model_bytes: int, name: str) -> dict[str, Any]:
    return {
        "base_model": name,
        "weights": len(base.weights),
        "float32_bytes": sum(float32_bytes(w.shape) for w in base.weights),
        "model_bytes": model_bytes,
    }
