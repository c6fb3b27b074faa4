"""A method: by which rule a version is read out, which statistics are kept for it, and how the read-out is scaled."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from ..plugins.registry import load
from ..plugins.rules._sums import adaptive_scale
from ..plugins.rules.batch_interface import is_batch
from ..plugins.rules.interface import Rule, Slots, Statistic, Survey
from ..plugins.rules.surveys import Norm
from ..state.errors import Misconfigured
from ..state.manifests import pinned_in
from ..state.records import Counts, Totals, Weight

Scale = Literal["rule", "mean-norm"] | float
NORM = Norm()


@dataclass(frozen=True)
class Lines:
    """LiNeS: the factor of a weight's read-out grows linearly with its depth. Source: arXiv 2410.17146, section 4."""

    alpha: float = 1.0  # at the input
    beta: float = 0.0  # what is added until the output

    def at(self, depth: float) -> float:
        """Return the factor at a depth from 0 to 1."""
        return self.alpha + self.beta * depth


EVEN = Lines()


@dataclass(frozen=True)
class Method:
    """How the versions of a merge are folded and read out; all of it enters their bytes."""

    name: str  # of the rule
    rule: Rule  # by which the merged task vector is read out
    also: Mapping[str, Rule]  # by name: rules whose statistics are kept besides, so that one can read by them later
    scale: Scale = "rule"
    lines: Lines = EVEN
    normalise: bool = False  # whether each task vector is folded at the mean norm of all

    def keeps(self, w: Weight) -> tuple[Statistic, ...]:
        """Return every statistic that is kept for a weight; equal ones of several rules once."""
        return tuple(dict.fromkeys(s for rule in (self.rule, *self.also.values()) for s in rule.keeps(w)))

    def rowwise(self, w: Weight) -> bool:
        """Whether a weight may go by in blocks of rows."""
        return self.rule.rowwise(w) and all(statistic.rowwise(w) for statistic in self.keeps(w))

    def is_costly(self, weights: tuple[Weight, ...]) -> bool:
        """Whether a weight is read out by more than a look at its slots, block by block."""
        return not all(self.rule.rowwise(w) for w in weights)

    def surveys(self, weights: tuple[Weight, ...]) -> tuple[Survey, ...]:
        """Return what must be known of a whole checkpoint before it is folded."""
        return tuple(dict.fromkeys(survey for w in weights for s in self.keeps(w) for survey in s.surveys))

    def needs(self, weights: tuple[Weight, ...]) -> frozenset[str]:
        """Return the names of what must be shipped beside a checkpoint."""
        return frozenset(name for w in weights for s in self.keeps(w) for name in s.needs) - {"seed"}

    def merged(self, kept: Mapping[Statistic, Slots], w: Weight, counts: Counts) -> Tensor:
        """Return the read-out of one weight, without the factor of its depth."""
        return self.rule.merged({statistic: kept[statistic] for statistic in self.rule.keeps(w)}, w, counts)

    def factor(self, totals: Totals) -> float:
        """Return the factor of the published task vector: published = base + factor x depth's factor x read-out.

        Normalised task vectors have norm 1, and what is read of them is brought back to the mean norm.
        """
        unit = totals.mean_norm if self.normalise else 1.0
        seen = replace(totals, mean_norm=1.0) if self.normalise and totals.mean_norm else totals
        match self.scale:
            case "rule":
                return unit * self.rule.scale(seen)
            case "mean-norm":
                return unit * adaptive_scale(seen.mean_norm, seen.readout_norm)
            case number:
                return unit * float(number)

    def keeps_as(self, other: "Method", weights: tuple[Weight, ...]) -> bool:
        """Whether another method keeps the same statistics of the same task vectors."""
        return self.normalise == other.normalise and all(set(self.keeps(w)) == set(other.keeps(w)) for w in weights)

    def cannot_read(self, other: Rule, weights: tuple[Weight, ...]) -> list[str]:
        """Return the weights of which the statistics that another rule reads are not kept."""
        return [w.name for w in weights if not set(other.keeps(w)) <= set(self.keeps(w))]

    def read_at_once(self, by: Mapping[str, Any]) -> "Method":
        """Return this method with the scale and the rule by which a re-merge reads all task vectors at once."""
        rule = make_rule(by["rule"], by.get("parameters", {}))
        return replace(self, name=by["rule"], rule=rule, scale=by.get("scale", self.scale), lines=Lines(**by["lines"]))

    def describe(self) -> dict[str, Any]:
        """Return what `method_of` makes it again from."""
        return {
            "rule": self.name,
            "parameters": parameters_of(self.rule),
            "also": {name: parameters_of(rule) for name, rule in self.also.items()},
            "scale": self.scale,
            "lines": asdict(self.lines),
            "normalise": self.normalise,
        }


def method_of(described: Mapping[str, Any]) -> Method:
    """Return the method that a description names; what it leaves out has its default. Raises Misconfigured."""
    name = described["rule"]
    return Method(
        name,
        fold_rule(name, described.get("parameters", {})),
        {other: fold_rule(other, given) for other, given in described.get("also", {}).items()},
        described.get("scale", "rule"),
        Lines(**described.get("lines", {})),
        described.get("normalise", False),
    )


def method_in(manifest: Mapping[str, Any]) -> Method:
    """Return how a version is folded onto, by its manifest."""
    pinned = pinned_in(manifest)
    also: dict[str, Any] = {name: {} for name in pinned.get("also_keep", ())}
    return method_of(manifest.get("method") or pinned | {"also": also})


def fold_rule(name: str, parameters: Mapping[str, Any]) -> Rule:
    """Return a rule that folds, with checked parameters. Raises Misconfigured of one that must see all checkpoints."""
    if is_batch(load("rules", name)):
        raise Misconfigured(
            f"{name} must see all checkpoints at once: it cannot fold them as they arrive",
            f"to merge what was folded anew by it: mergd remerge --rule {name}; which rules fold: mergd rules",
        )
    rule: Rule = make_rule(name, parameters)
    return rule


def make_rule(name: str, parameters: Mapping[str, Any]) -> Any:
    """Return a rule with checked parameters. Raises Misconfigured naming the wrong one and what there is."""
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
