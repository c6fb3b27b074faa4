"""A gate that is a program: whoever runs it, and however it ends, what comes of it is a value."""

import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import repository
from contracts.gate import GateContract, frame
from support.gates import write_gate

from mergd.plugins.gates.program import Model, Program
from mergd.plugins.programs import Ran
from mergd.state.records import Metric, Verdict


class TestTheScriptOfTheTests(GateContract):
    @pytest.fixture
    def command(self, tmp_path: Path) -> tuple[str, ...]:
        return tuple(write_gate(tmp_path / "gate.py")["command"])


class TestTheExampleOfThePage(GateContract):
    @pytest.fixture
    def command(self, tmp_path: Path) -> tuple[str, ...]:
        page = (repository.ROOT / "docs" / "gates.md").read_text()
        (script,) = re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
        (tmp_path / "gate.py").write_text(script)
        return (sys.executable, str(tmp_path / "gate.py"))


class Ends:
    """Runs nothing, and ends as it is told to."""

    def __init__(self, exit: int | None, output: bytes = b"", last_line: str = "") -> None:
        self.ran = Ran(exit, output, last_line)

    def run(self, request: bytes, seconds: float, stopped: Callable[[], bool]) -> Ran:
        return self.ran


def outcome(*ran: object) -> dict[str, Metric] | Verdict:
    program = Program("eval", Ends(*ran))  # type: ignore[arg-type]
    return program.measure(Model("digest", "/model", "the draft", "/place"), lambda: False)


def test_an_answer_counts_with_exit_code_0_alone() -> None:
    assert outcome(0, frame()) == {"a": Metric(0.5, True, 10)}
    for code in (*range(1, 65), *range(66, 256), *range(-64, 0)):
        ended = outcome(code, frame(), "its last line")
        assert isinstance(ended, Verdict)
        assert (ended.decision, [reason.code for reason in ended.reasons]) == ("held", ["gate-failed"])
        assert "its last line" in ended.reasons[0].found


def test_65_refuses_with_its_reason() -> None:
    refused = outcome(65, b"", "trained on the test set")
    assert isinstance(refused, Verdict)
    assert (refused.decision, refused.reasons[0].code) == ("refused", "gate-refused")
    assert refused.reasons[0].found == "gate eval refuses the draft: trained on the test set"
    silent = outcome(65)
    assert isinstance(silent, Verdict)
    assert silent.reasons[0].found.endswith("it gave no reason")


@pytest.mark.parametrize(
    ("ran", "why"),
    [
        ((None, b"", "it took too long"), "it took too long"),
        ((-9,), "signal 9"),
        ((1, b"", "no CUDA"), "exit code 1: no CUDA"),
        ((0, b"nothing"), "no JSON: 'nothing'"),
    ],
)
def test_a_failure_says_what_was_wrong(ran: tuple[object, ...], why: str) -> None:
    failed = outcome(*ran)
    assert isinstance(failed, Verdict)
    assert failed.reasons[0].found == f"gate eval could not measure the draft: {why}"
