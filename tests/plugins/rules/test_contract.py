"""Every registered fold rule, held to the contract of fold rules."""

import ast
from collections.abc import Iterator
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
from contracts.registered import NAMES, REGISTERED
from contracts.rule import WEIGHTS, Reference, RuleContract

from mergd.plugins.rules.average import Average
from mergd.plugins.rules.interface import Rule
from mergd.plugins.rules.opcm import Opcm
from mergd.plugins.rules.task_arithmetic import TaskArithmetic

REFERENCES = Path(__file__).parents[2] / "references"


class TestRegisteredRules(RuleContract):
    @pytest.fixture(params=REGISTERED, ids=repr)
    def rule(self, request: pytest.FixtureRequest) -> Rule:
        rule: Rule = request.param
        return rule

    @pytest.fixture
    def reference(self, rule: Rule) -> Reference:
        merge: Reference = import_module(f"references.{NAMES[type(rule)]}").merge
        return merge


@pytest.mark.parametrize("path", sorted(REFERENCES.glob("*.py")), ids=lambda path: path.name)
def test_a_reference_shares_nothing_with_what_it_judges(path: Path) -> None:
    assert "mergd" not in {name.partition(".")[0] for name in imports_of(path)}


def imports_of(path: Path) -> Iterator[str]:
    """Yield the modules that a file imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


def test_the_rules_of_mergd_are_registered() -> None:
    assert {Average, Opcm, TaskArithmetic} <= {type(rule) for rule in REGISTERED}


def test_average_and_task_arithmetic_read_one_statistic() -> None:
    for w in WEIGHTS:
        assert Average().keeps(w) == TaskArithmetic().keeps(w) == TaskArithmetic(2.0).keeps(w)


def test_what_opcm_does_not_project_it_shares_with_the_sums() -> None:
    for w in WEIGHTS:
        assert (Opcm().keeps(w) == Average().keeps(w)) == (w.kind not in ("matrix", "convolution"))


def test_other_parameters_are_another_statistic() -> None:
    matrix = WEIGHTS[0]
    others = (replace(Opcm(), alpha=0.3), replace(Opcm(), variant="paper"))
    assert len({rule.keeps(matrix) for rule in (Opcm(), *others)}) == 3
