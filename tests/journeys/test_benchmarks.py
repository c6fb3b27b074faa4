"""The benchmarks in tiny: every comparison runs, and every ratio is a number; none is judged, and the page is let be.

What is measured beside other packages is left out where `make bench` has not installed them.
"""

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import repository

BENCHMARKS = repository.ROOT / "benchmarks"
PAGE = repository.ROOT / "docs" / "benchmarks.md"
PARTS = {"side_by_side.py": {"fusion-bench", "mergekit", "machine"}, "scale.py": {"scale"}}


@pytest.mark.parametrize("script", PARTS)
def test_a_benchmark_makes_its_part_of_the_page(script: str, tmp_path: Path) -> None:
    before = PAGE.read_text()
    docs = tmp_path / "docs"
    docs.mkdir()
    command = [sys.executable, str(BENCHMARKS / script), "--quick", "--docs", str(docs)]
    ran = subprocess.run(command, check=False, capture_output=True, text=True, timeout=600, cwd=tmp_path)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert set(json.loads((docs / "benchmarks.json").read_text())) == PARTS[script]
    got = figures(docs)
    assert got
    assert not {what: value for what, value in got.items() if not (math.isfinite(value) and value > 0)}
    text = (docs / "benchmarks.md").read_text()
    assert "| nan" not in text
    assert "| inf" not in text
    assert [path.name for path in tmp_path.iterdir()] == ["docs"]
    assert PAGE.read_text() == before


def test_the_page_is_what_the_samples_say() -> None:
    code = "import sys; from page import Page; sys.exit(Page().page.read_text() != Page().text())"
    assert python(code).returncode == 0, "run: make bench"


def figures(docs: Path) -> dict[str, float]:
    """Return the figures to reach that a page has, as they were got."""
    code = (
        "import json, sys; from pathlib import Path; from page import Page, promises;"
        "print(json.dumps({one.what: one.got.middle for one in promises(Page(Path(sys.argv[1])).results())}))"
    )
    found: dict[str, Any] = json.loads(python(code, str(docs)).stdout)
    return found


def python(code: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a line where the benchmarks are found by their names."""
    return subprocess.run(
        [sys.executable, "-c", code, *words], cwd=BENCHMARKS, capture_output=True, text=True, check=False
    )
