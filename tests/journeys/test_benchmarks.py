"""The benchmarks in tiny: a comparison runs, and every ratio is a number; none is judged, and the page is let be.

The comparison with the machine's own limits runs always, the others with `make bench-quick`; what is measured beside other
packages is left out where `make bench` has not installed them.
"""

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import repository

pytestmark = pytest.mark.long

BENCHMARKS = repository.ROOT / "benchmarks"
PAGE = repository.ROOT / "docs" / "benchmarks.md"
ALL = "TEST_ALL_BENCHMARKS"  # in the environment: all parts; each starts dozens of interpreters
PARTS = {
    "machine": ("side_by_side.py", "--parts", "machine"),
    "mergekit": ("side_by_side.py", "--parts", "mergekit"),
    "fusion-bench": ("side_by_side.py", "--parts", "fusion-bench"),
    "scale": ("scale.py",),
}


@pytest.mark.parametrize("part", PARTS if os.environ.get(ALL) else ["machine"])
def test_a_benchmark_makes_its_part_of_the_page(part: str, tmp_path: Path) -> None:
    before = PAGE.read_text()
    docs = tmp_path / "docs"
    docs.mkdir()
    script, *options = PARTS[part]
    command = [sys.executable, str(BENCHMARKS / script), *options, "--quick", "--docs", str(docs)]
    ran = subprocess.run(command, check=False, capture_output=True, text=True, timeout=600, cwd=tmp_path)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert set(json.loads((docs / "benchmarks.json").read_text())) == {part}
    got = figures(docs)
    assert got or not (repository.ROOT / ".peers" / part).exists()
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
