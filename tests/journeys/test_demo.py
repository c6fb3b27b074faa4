"""The demo's claim on one seed: trained, dropped into the real daemon, better than plain averaging, rolled back exactly."""

import subprocess
import sys
from pathlib import Path

import pytest
import repository

pytestmark = pytest.mark.long


def test_the_merged_model_beats_plain_averaging_and_rolls_back(tmp_path: Path) -> None:
    demo = repository.ROOT / "benchmarks" / "demo"
    command = [sys.executable, str(demo), "--seeds", "11", "--no-picture", "--work", str(tmp_path)]
    ran = subprocess.run(command, check=False, capture_output=True, text=True, timeout=240)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "roll back: restored exactly" in ran.stdout
