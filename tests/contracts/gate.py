"""The suite for gates that are programs: subclass it, and say how yours is started.

What it checks is what the daemon relies on, docs/gates.md; what the numbers are worth, only whoever wrote it knows.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from support.models import save_model, tiny_base

from mergd.plugins.gates.program import Model, Program
from mergd.plugins.programs import Child
from mergd.state.records import Metric, Verdict

PATIENCE = 600.0  # seconds


def runs_on() -> bool:
    """Return that nobody stops it."""
    return False


class GateContract:
    """What every gate's program must do."""

    @pytest.fixture
    def command(self, tmp_path: Path) -> tuple[str, ...]:
        """Return the words that start it."""
        raise NotImplementedError

    @pytest.fixture
    def model(self, tmp_path: Path) -> Path:
        """Return a model folder that it can measure."""
        return save_model(tmp_path / "model", tiny_base())

    @pytest.fixture
    def measure(self, command: tuple[str, ...], tmp_path: Path) -> Callable[[Path], dict[str, Metric] | Verdict]:
        """Return what asks it."""
        program = Program("contract", Child(command, tmp_path / "logs" / "log"), PATIENCE)
        return lambda path: program.measure(Model("", str(path), "a model", "/place", 2, "a\n名", 1), runs_on)

    def test_it_measures_a_model(self, measure: Callable[[Path], dict[str, Metric] | Verdict], model: Path) -> None:
        assert isinstance(measure(model), dict), measure(model)

    def test_it_measures_the_same_twice(
        self, measure: Callable[[Path], dict[str, Metric] | Verdict], model: Path
    ) -> None:
        """Names and directions; the values too, but for the noise that `drop` must be above."""
        first, second = measure(model), measure(model)
        assert isinstance(first, dict)
        assert isinstance(second, dict)
        assert {n: (m.higher_is_better, m.n) for n, m in first.items()} == {
            n: (m.higher_is_better, m.n) for n, m in second.items()
        }

    def test_it_changes_nothing_in_the_folder(
        self, measure: Callable[[Path], dict[str, Metric] | Verdict], model: Path
    ) -> None:
        before = {path.name: path.read_bytes() for path in model.iterdir()}
        measure(model)
        assert {path.name: path.read_bytes() for path in model.iterdir()} == before

    def test_it_says_nothing_good_of_a_folder_that_is_none(
        self, measure: Callable[[Path], dict[str, Metric] | Verdict], tmp_path: Path
    ) -> None:
        (tmp_path / "empty").mkdir()
        (tmp_path / "half").mkdir()
        (tmp_path / "half" / "model.safetensors").write_bytes(os.urandom(100))
        assert isinstance(measure(tmp_path / "empty"), Verdict)
        assert isinstance(measure(tmp_path / "half"), Verdict)


def frame(**changes: object) -> bytes:
    """Return an answer of one metric, with changes to it."""
    metric = {"value": 0.5, "higher_is_better": True, "n": 10} | changes
    return json.dumps({"protocol": 1, "metrics": {"a": metric}}).encode()
