"""The comparison with other packages, as far as it goes without them: its page, its cases, and mergd's half of it."""

from pathlib import Path

import pytest
from peers.__main__ import prepare
from peers.cases import CASES, WITHOUT_PEER, Case
from peers.comparing import EQUAL, KINDS, by_mergd, by_reference, differences
from peers.table import PATH
from support.commands import start_forking

from mergd.plugins.registry import names

pytestmark = pytest.mark.long

COUNT = 2


@pytest.fixture(scope="module", autouse=True)
def _forking() -> None:
    start_forking()


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("peers")
    prepare(folder, COUNT, seed=2)
    return folder


def test_every_rule_is_compared_or_has_no_peer() -> None:
    ours = [name for name in names("rules") if name not in WITHOUT_PEER]
    assert sorted(ours) == sorted({case.rule for case in CASES})


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.told)
def test_the_page_has_every_case(case: Case) -> None:
    assert f"| {case.told} | `{case.rule}` |" in PATH.read_text(), "run: make peers"


@pytest.mark.parametrize("rule", ["dare", "ties", "opcm"])
def test_mergd_publishes_what_the_reference_says(work: Path, rule: str) -> None:
    """With the seeds that mergd draws its masks by, the order of the folds, and a threshold of the whole checkpoint."""
    case = [case for case in CASES if case.rule == rule][-1]
    there = by_reference(case, work / "clip", "clip", COUNT)
    found = differences(by_mergd(case, work / "clip", COUNT), there, "clip")
    assert {kind: value < EQUAL for kind, value in found.items()} == dict.fromkeys(KINDS, True)
