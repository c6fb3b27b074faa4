"""What is measured, by name: mergd's rules with their parameters, those for a re-merge only, and the references."""

import inspect
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mergd.plugins.registry import load, names
from mergd.plugins.rules.batch_interface import is_batch

# Scales of plain task arithmetic.
GRID = (0.01, 0.02, 0.03, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.6, 0.7, 0.8, 1.0, 1.25, 1.5, 2.0)
VARIANTS = ("block", "orthogonal", "block_diagonal", "paper")
# Of rules whose parameters, or whose scale, are asked about.
OTHERWISE: dict[str, tuple[str, dict[str, Any]]] = {
    "gram-unflattened": ("gram", {"flatten": 0, "lambda": 1}),
    "gram-short-side": ("gram", {"long_side": 1}),
    "gram-mean-norm": ("gram", {"scale": "mean-norm"}),
    "tsvm-mean-norm": ("tsvm", {"scale": "mean-norm"}),
    "opcm-mean-others": ("opcm", {"others": "mean"}),
}


@dataclass(frozen=True)
class Method:
    """One way to merge. Without a rule it is a reference, which knows nothing of mergd."""

    name: str
    rule: str = ""
    parameters: dict[str, Any] = field(default_factory=dict)
    remerge: str = ""  # the rule of a re-merge after the last fold; nothing before is looked at
    reference: str = ""  # its name in reference.py
    needs_fisher: bool = False  # no adapter has any

    @property
    def sources(self) -> list[Path]:
        """Return the files that say what it computes; a change there makes what was measured stale."""
        if self.reference:
            return [Path(__file__).with_name(name) for name in ("reference.py", "in_package.py")]
        rule = Path(str(inspect.getsourcefile(load("rules", self.remerge or self.rule))))
        return [rule, *sorted(rule.parent.glob("_*.py"))]


def _rules() -> list[Method]:
    made = []
    for rule in sorted(names("rules")):
        if rule == "opcm":
            made += [Method(f"opcm-{variant}", rule, {"variant": variant}) for variant in VARIANTS]
        elif is_batch(load("rules", rule)):
            made.append(Method(rule, "average", remerge=rule))
        else:
            made.append(Method(rule, rule, needs_fisher=rule == "fisher"))
    return [*made, *(Method(name, rule, set_) for name, (rule, set_) in OTHERWISE.items())]


def _references() -> list[Method]:
    plain = ["zero-shot", "individual", "plain-average", "chained-ties", "fusion-bench-opcm"]
    grid = [Method(f"plain-sum-{s:g}", parameters={"scale": s}, reference="plain-sum") for s in GRID]
    return [*(Method(name, reference=name) for name in plain), *grid]


METHODS: dict[str, Method] = {method.name: method for method in (*_references(), *_rules())}
