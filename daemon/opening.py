"""Opening a merge: its settings against what init pinned, its base model, its rule and its plugins."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..plugins.gates.interface import Gate
from ..plugins.hooks.interface import Hook
from ..plugins.registry import load, make
from ..state.digests import DIGESTS, check_digests
from ..state.errors import Misconfigured
from ..state.history import History
from ..state.records import Version
from .base import Base, examine, file_stamps, locate, open_base
from .blocks import machine_of
from .device import resolve
from .method import Method, make_rule, method_of, parameters_of
from .progress import Progress
from .settings import PINNED, Settings
from .telling import make_hooks

# What was pinned by a mergd that gave no choice.
AS_BEFORE: Mapping[str, Any] = {
    "convolutions": "sum",
    "device": "cpu",
    "scale": "rule",
    "lines": {"alpha": 1.0, "beta": 0.0},
    "normalise": False,
    "also_keep": [],
}
RELOADED = {"publish_private_sources", "write_token"}  # settings of the hub that a reload may change


@dataclass(frozen=True)
class Merge:
    """What stays as it is while a daemon runs: the base model, the method, and who judges and who is told."""

    base: Base
    method: Method  # that init pinned
    sane: Gate  # ours, always: it judges before anything is published
    gates: Mapping[str, Gate]  # the user's, by name
    hooks: Mapping[str, Hook]

    def method_at(self, version: Version | None) -> Method:
        """Return how a version is folded onto: as init pinned it, or as a read-out or a re-merge since has it."""
        return self.method_of(version.method if version else {})

    def method_of(self, described: Mapping[str, Any]) -> Method:
        """Return a method as a version has it: nothing means as init pinned it."""
        return method_of(described) if described else self.method


def make_sane(settings: Settings) -> Gate:
    """Return the built-in gate with the settings' limits."""
    gate: Gate = load("gates", "sane")(**settings.limits.model_dump())
    return gate


def open_merge(settings: Settings, history: History, progress: Progress) -> Merge:
    """Return the merge that init pinned. Raises Misconfigured, with both values, where the settings differ from it."""
    pins = _pins(history)
    if not pins:
        raise Misconfigured(f"{settings.state} holds no merge", "make one: mergd init --help")
    method = method_of(settings.method)
    check_pins(settings, method, pins)
    base = _open_pinned_base(settings, history, pins, progress)
    _show_base(settings, base)
    machine_of(settings, base, method)
    return Merge(base=base, method=method, **_judges_and_listeners(settings))


def _pins(history: History) -> dict[str, Any]:
    """Return what init pinned; an older mergd, which gave no choice, pinned less."""
    pins = history.pins()
    lacking = {name: value for name, value in AS_BEFORE.items() if name not in pins}
    if pins and lacking:
        history.pin(lacking)
    return pins and pins | lacking


def reopen_merge(merge: Merge, old: Settings, new: Settings, pins: Mapping[str, Any]) -> Merge:
    """Return the merge under new settings. Raises Misconfigured for what init pinned, or what only a restart changes."""
    check_pins(new, method_of(new.method), pins)
    machine_of(new, merge.base, merge.method)
    fixed = new.model_copy(update={"hub": new.hub.model_copy(update=old.hub.model_dump(include=RELOADED))})
    for key in ("watch", "source", "state", "hub"):
        if getattr(fixed, key) != getattr(old, key):
            raise Misconfigured(
                f"{key} was {getattr(old, key)} when the daemon started", "restart the daemon to change it"
            )
    _show_base(new, merge.base)
    return replace(merge, **_judges_and_listeners(new))


def _show_base(settings: Settings, base: Base) -> None:
    """Let a gate in a unit of its own, and so another user, read a base model that the daemon fetched from the Hub."""
    if base.commit and base.folder and any(gate.socket for gate in settings.gate.values()):
        from ..plugins.sources.hub import repository as hub  # the Hub's client takes a while to import

        hub.let_others_read(base.folder)


def _judges_and_listeners(settings: Settings) -> dict[str, Any]:
    return {
        "sane": make_sane(settings),
        "gates": {name: make("gates", name) for name in settings.gates},
        "hooks": make_hooks(settings.hooks),
    }


def check_pins(settings: Settings, method: Method, pins: Mapping[str, Any]) -> None:
    """Compare what init pinned with the settings of now."""
    now = pinned_by(settings, method)
    pinned = {**AS_BEFORE, **pins}
    if pinned["rule"] == method.name:  # parameters that it got since have their defaults
        pinned["parameters"] = parameters_of(make_rule(method.name, pinned["parameters"]))
    for key in PINNED:
        if now[key] != pinned[key]:
            raise Misconfigured(
                f"{key} is {now[key]!r} in the configuration, but this state was made with {pinned[key]!r}",
                f"set {key} back, or make a new state with mergd init",
            )


def pinned_by(settings: Settings, method: Method) -> dict[str, Any]:
    """Return what settings pin: what they leave open, as it is here."""
    return settings.pinned | {"parameters": parameters_of(method.rule), "device": resolve(settings.device)}


def pins_of(settings: Settings, method: Method, base: Base, commit: str | None) -> dict[str, Any]:
    """Return what init fixes for the life of a state."""
    return pinned_by(settings, method) | {
        "digests": DIGESTS,
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

    Or if an older mergd read it, that kept no norms. Raises Misconfigured where its digest was another kind of digest.
    """
    check_digests(pins.get("digests"))
    place, _ = locate(settings.base_model, pins["base_commit"], progress)
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
