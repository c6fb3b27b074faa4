"""Opening a merge: its settings against what init pinned, its base model, its rule and its plugins."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from pydantic import TypeAdapter, ValidationError

from ..plugins.gates.interface import Gate
from ..plugins.hooks.interface import Hook
from ..plugins.registry import load
from ..plugins.rules.interface import Rule
from ..plugins.sources.interface import Source
from ..state.errors import Misconfigured
from ..state.history import History
from .base import Base, examine, file_stamps, locate, open_base
from .progress import Progress
from .settings import PINNED, Settings
from .telling import make_hooks


@dataclass(frozen=True)
class Merge:
    """What stays as it is while a daemon runs: the base model, the rule, and who judges and who is told."""

    base: Base
    rule: Rule
    sane: Gate  # ours, always: it judges before anything is published
    gates: Mapping[str, Gate]  # the user's, by name
    hooks: Mapping[str, Hook]


def make_rule(name: str, parameters: Mapping[str, Any]) -> Any:
    """Return a fold rule with checked parameters. Raises Misconfigured naming the wrong one and what there is."""
    kind = load("rules", name)
    known = {field.name.rstrip("_"): field.name for field in fields(kind)}
    hint = f"parameters of {name}: {', '.join(known) or 'none'}"
    for parameter in parameters:
        if parameter not in known:
            raise Misconfigured(f"{name} has no parameter {parameter!r}", hint)
    try:
        return TypeAdapter(kind).validate_python({known[name]: value for name, value in parameters.items()})
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]).rstrip("_") or name
        raise Misconfigured(f"parameters: {key}: {first['msg']}", hint) from None


def parameters_of(rule: Rule) -> dict[str, Any]:
    """Return a rule's parameters as a configuration names them: `lambda_`, which Python reserves, is `lambda`."""
    return {name.rstrip("_"): value for name, value in asdict(rule).items()}


def make_source(settings: Settings) -> Source:
    """Return the source that the settings name, over the folder that they watch."""
    source: Source = load("sources", settings.source)(settings.watch)
    return source


def make_sane(settings: Settings) -> Gate:
    """Return the built-in gate with the settings' limits."""
    gate: Gate = load("gates", "sane")(**settings.limits.model_dump())
    return gate


def open_merge(settings: Settings, history: History, progress: Progress) -> Merge:
    """Return the merge that init pinned. Raises Misconfigured, with both values, where the settings differ from it."""
    pins = _pins(history)
    if not pins:
        raise Misconfigured(f"{settings.state} holds no merge", "make one: mergd init --help")
    rule = make_rule(settings.rule, settings.parameters)
    check_pins(settings, rule, pins)
    return Merge(
        base=_open_pinned_base(settings, history, pins, progress),
        rule=rule,
        **_judges_and_listeners(settings),
    )


def _pins(history: History) -> dict[str, Any]:
    """Return what init pinned; an older mergd, which gave no choice of how to fold convolutions, summed them."""
    pins = history.pins()
    if pins and "convolutions" not in pins:
        history.pin({"convolutions": "sum"})
    return history.pins()


def reopen_merge(merge: Merge, old: Settings, new: Settings, pins: Mapping[str, Any]) -> Merge:
    """Return the merge under new settings. Raises Misconfigured for what init pinned, or what only a restart changes."""
    check_pins(new, make_rule(new.rule, new.parameters), pins)
    for key in ("watch", "source", "state"):
        if getattr(new, key) != getattr(old, key):
            raise Misconfigured(
                f"{key} was {getattr(old, key)} when the daemon started", "restart the daemon to change it"
            )
    return replace(merge, **_judges_and_listeners(new))


def _judges_and_listeners(settings: Settings) -> dict[str, Any]:
    return {
        "sane": make_sane(settings),
        "gates": {name: load("gates", name)() for name in settings.gates},
        "hooks": make_hooks(settings.hooks),
    }


def check_pins(settings: Settings, rule: Any, pins: Mapping[str, Any]) -> None:
    """Compare what init pinned with the settings of now."""
    now = settings.pinned | {"parameters": parameters_of(rule)}
    for key in PINNED:
        if now[key] != pins[key]:
            raise Misconfigured(
                f"{key} is {now[key]!r} in the configuration, but this state was made with {pins[key]!r}",
                f"set {key} back, or make a new state with mergd init",
            )


def pins_of(settings: Settings, rule: Any, base: Base, commit: str | None) -> dict[str, Any]:
    """Return what init fixes for the life of a state."""
    return settings.pinned | {
        "parameters": parameters_of(rule),
        "base_commit": commit,
        "base_digest": base.digest,
        "base_norms": dict(base.norms),
        "base_stamps": file_stamps(base.layout),
        "tied": dict(base.tied),
        "weights": [weight.name for weight in base.weights],
    }


def _open_pinned_base(settings: Settings, history: History, pins: Mapping[str, Any], progress: Progress) -> Base:
    """Return the base model; what was found by reading it again is pinned, so that it is not read once more."""
    base = pinned_base(settings, pins, progress)
    found = {"base_stamps": file_stamps(base.layout), "base_norms": dict(base.norms)}
    if any(pins.get(name) != value for name, value in found.items()):
        history.pin(found)
    return base


def pinned_base(settings: Settings, pins: Mapping[str, Any], progress: Progress) -> Base:
    """Return the base model; it is read whole again only if its files are not those that were read last.

    Or if an older mergd read it, that kept no norms.
    """
    place, _ = locate(settings.base_model, pins["base_commit"])
    if "base_norms" in pins:
        base = open_base(place, pins)
        if file_stamps(base.layout) == pins["base_stamps"]:
            return base
    again = examine(place, progress, settings.convolutions)
    progress.end()
    if again.digest != pins["base_digest"]:
        raise Misconfigured(
            f"the base model at {settings.base_model} has digest {again.digest[:12]} now, "
            f"but this state was made with {pins['base_digest'][:12]}",
            "bring the old base model back, or make a new state with mergd init",
        )
    return replace(again, commit=pins["base_commit"])
