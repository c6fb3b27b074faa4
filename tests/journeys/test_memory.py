"""The promise of memory: a fold's peak depends on the memory setting and the largest matrix, not on a lookup table's size."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import repository
import torch
from support.commands import mergd
from support.merges import make_merge, set_in

pytestmark = pytest.mark.long

LIMIT = 500  # MB, torch included; 398 measured here, and 651 where the allocator keeps freed blocks


def test_a_large_lookup_table_goes_by_in_blocks(tmp_path: Path) -> None:
    benchmark = repository.ROOT / "benchmarks" / "memory.py"
    command = [sys.executable, str(benchmark), "--gb", "0.05", "--rows", "40000", "--limit-mb", str(LIMIT)]
    ran = subprocess.run(command, check=False, capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert json.loads(ran.stdout.splitlines()[-1])["folds"] == 2


def test_too_little_memory_is_an_error_before_anything_is_made(tmp_path: Path) -> None:
    base = {"layer.weight": torch.randn(640, 640)}
    merge = make_merge(tmp_path, base)
    words = [
        "--base",
        merge.base,
        "--watch",
        merge.watch,
        "--state",
        tmp_path / "other",
        "--config",
        tmp_path / "o.toml",
    ]
    refused = mergd("init", *words, "--set", "memory=5MB", at=tmp_path)
    assert refused.code == 78
    assert "set memory to" in refused.err
    assert not (tmp_path / "other").exists()
    assert not (tmp_path / "o.toml").exists()
    merge.drop("a", 1)
    set_in(merge.config, memory='"5MB"')
    assert merge.mergd("run", "--once").code == 78
    assert merge.versions() == []
    set_in(merge.config, memory="0")
    assert merge.mergd("run", "--once").code == 0
    (version,) = merge.versions()
    assert {"wait", "read", "decompose", "fold", "publish", "sync"} <= version.seconds.keys()
    status = json.loads((merge.state / "status.json").read_text())
    assert status["latency"]["in_all"] == pytest.approx(sum(version.seconds.values()), abs=0.01)
