"""Every registered fold rule, held to the contract of fold rules."""

from dataclasses import replace
from importlib.metadata import entry_points

import pytest
from contracts.rule import WEIGHTS, RuleContract, examples_of

from mergd.plugins.rules.average import Average
from mergd.plugins.rules.interface import Rule
from mergd.plugins.rules.opcm import Opcm
from mergd.plugins.rules.task_arithmetic import TaskArithmetic

REGISTERED = [rule for entry in entry_points(group="mergd.rules") for rule in examples_of(entry.load())]


class TestRegisteredRules(RuleContract):
    @pytest.fixture(params=REGISTERED, ids=repr)
    def rule(self, request: pytest.FixtureRequest) -> Rule:
        rule: Rule = request.param
        return rule


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
