"""The benchmark of quality in tiny: digits are trained, folded by mergd and measured, and the page is made of that."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import repository

BENCHMARKS = repository.ROOT / "benchmarks"
PATIENCE = 1200  # seconds


@pytest.mark.long
def test_the_quick_run_makes_a_page(tmp_path: Path) -> None:
    pages = {path: path.read_bytes() for path in (repository.ROOT / "docs").glob("quality*")}
    docs, where = tmp_path / "docs", tmp_path / "quality"
    docs.mkdir()
    command = [sys.executable, "-m", "quality", "--quick", "--jobs", "2", "--where", str(where), "--docs", str(docs)]
    ran = subprocess.run(command, check=False, capture_output=True, text=True, timeout=PATIENCE, cwd=BENCHMARKS)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    results = [json.loads(path.read_text()) for path in where.glob("results/*/*/*.json")]
    assert {result["set"] for result in results} == {
        "digits-5",
        "digits-5-lora",
        "digits-5+noise",
        "digits-5+noise-gate",
    }
    assert {"individual", "opcm-block", "gram"} <= {result["method"] for result in results}
    assert (docs / "quality.md").exists()
    assert not list((where / "work").iterdir())
    assert {path: path.read_bytes() for path in pages} == pages
