"""kill -9 at moments of chance and at calls counted out; `make kills` kills at every call, and as often as you like."""

import json
import subprocess
import sys
from typing import Any

import pytest
import repository
from faults.broken import BROKEN
from faults.points import SCENARIOS

pytestmark = pytest.mark.long

COUNT = 20


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a short run saw; its processes are of another kind: forked from one that has the fault shim."""
    report = tmp_path_factory.mktemp("kills") / "report.json"
    sizes = ["--count", str(COUNT), "--every", "60", "--report", str(report)]
    words = [sys.executable, "-m", "faults", *sizes]
    done = subprocess.run(words, cwd=repository.ROOT / "tests", capture_output=True, text=True, check=False)
    assert report.exists(), done.stderr
    found: dict[str, Any] = json.loads(report.read_text())
    assert (done.returncode == 0) == found["good"], done.stderr
    return found


def test_nothing_is_lost_and_nothing_doubled_whenever_it_is_killed(seen: dict[str, Any]) -> None:
    kills = seen["kills"]
    assert kills["wrong"] == []
    assert kills["count"] >= COUNT


def test_the_kills_come_where_it_matters(seen: dict[str, Any]) -> None:
    assert seen["kills"]["missed"] == [], "steps of the commit protocol that no kill hit"
    assert seen["kills"]["making"] >= 0.5, "the share from the first write of a draft to the swap of the link"


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_command_may_be_killed_at_any_call(seen: dict[str, Any], name: str) -> None:
    kills, wrong = seen["points"][name]
    assert wrong == []
    assert kills > 0


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_protocol_is_found(seen: dict[str, Any], name: str) -> None:
    assert seen["broken"][name], "the harness sees nothing wrong in a protocol that is"
