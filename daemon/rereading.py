"""Rereading: by which method a version is read out, or merged anew, when a person asks for another one. Pure."""

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from ..plugins.rules.batch_interface import is_batch
from ..plugins.rules.interface import Rule
from ..state.errors import Usage
from ..state.records import Weight
from .method import Lines, Method, Scale, make_rule, parameters_of


@dataclass(frozen=True)
class Asked:
    """What a person asks for; what is None stays as it is."""

    rule: str | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    scale: Scale | None = None
    lines: Mapping[str, float] | None = None

    @staticmethod
    def of(arguments: Mapping[str, Any]) -> "Asked":
        """Return what a task's arguments say."""
        return Asked(arguments["rule"], arguments["parameters"], arguments["scale"], arguments["lines"])

    def scaled(self, method: Method) -> Method:
        """Return a method with the scale and the factors by depth that are asked for."""
        lines = Lines(**self.lines) if self.lines is not None else method.lines
        return replace(method, scale=method.scale if self.scale is None else self.scale, lines=lines)


def read_out(now: Method, asked: Asked, weights: tuple[Weight, ...]) -> Method:
    """Return the method that reads what `now` keeps as it is asked for; it keeps the same statistics.

    Raises Usage where they are not what the rule reads.
    """
    if asked.rule is None and not asked.parameters:
        return asked.scaled(now)
    name = asked.rule or now.name
    rule = make_rule(name, _parameters(now, name, asked))
    if is_batch(rule):
        raise Usage(f"{name} must see all task vectors at once", f"to merge them anew: mergd remerge --rule {name}")
    lacking = now.cannot_read(rule, weights)
    if lacking:
        what = f"what {name} reads is not kept of {len(lacking)} of {len(weights)} weights, such as {lacking[0]}"
        same = ", with the same --set" if asked.parameters else ""
        raise Usage(what, f"to merge anew, by what is still at its source: mergd remerge --rule {name}{same}")
    return asked.scaled(replace(now, name=name, rule=rule, also=_still_kept(now, name, rule, weights)))


def _parameters(now: Method, name: str, asked: Asked) -> dict[str, Any]:
    """Return a rule's parameters: those that are asked for, else as they are kept, else its defaults."""
    known: Rule | None = now.rule if now.name == name else now.also.get(name)
    return (parameters_of(known) if known is not None else {}) | dict(asked.parameters)


def _still_kept(now: Method, name: str, rule: Rule, weights: tuple[Weight, ...]) -> dict[str, Rule]:
    """Return the rules whose statistics must be kept besides, so that nothing of what is kept is lost.

    With other parameters a rule may read less than it did: then what it was is kept besides, by its own name.
    """
    also = {other: kept for other, kept in now.also.items() if other != name or not _covered(kept, (rule,), weights)}
    others = (rule, *also.values()) if now.name == name else (rule,)
    return also if _covered(now.rule, others, weights) else {now.name: now.rule} | _without(also, now.name)


def _covered(rule: Rule, others: Collection[Rule], weights: tuple[Weight, ...]) -> bool:
    """Whether other rules keep all that a rule reads."""
    return all(set(rule.keeps(w)) <= {s for other in others for s in other.keeps(w)} for w in weights)


def _without(also: Mapping[str, Rule], name: str) -> dict[str, Rule]:
    return {other: kept for other, kept in also.items() if other != name}


def remerged_by(now: Method, asked: Asked) -> tuple[Method, dict[str, Any]]:
    """Return the method by which what is merged anew is folded onto; and how it is read, if by a batch rule.

    A batch rule keeps nothing: beside it, the statistics of now are made anew, and the next fold is read by them.
    """
    if asked.rule is None and not asked.parameters:
        return asked.scaled(now), {}
    name = asked.rule or now.name
    rule = make_rule(name, _parameters(now, name, asked))
    if not is_batch(rule):
        return asked.scaled(replace(now, name=name, rule=rule, also=_without(now.also, name))), {}
    read = asked.scaled(now)
    by = {"rule": name, "parameters": parameters_of(rule), "scale": read.scale, "lines": asdict(read.lines)}
    return now, {"by": by}
