"""Short runs of the long harnesses: errors of the disk at each call, a disk that fills up, power cuts and their control."""

import subprocess
import sys
from pathlib import Path

import pytest
from faults.mounts import NEEDED, can_mount

pytestmark = pytest.mark.long

TESTS = Path(__file__).parent.parent
root = pytest.mark.skipif(not can_mount(*NEEDED), reason="mounting needs root, /dev/fuse and /dev/loop-control")


def run(harness: str, *arguments: str) -> str:
    """Run a harness as `make` does; returns what it said. A process of its own: its mounts and its shim are no one else's."""
    words = [sys.executable, "-m", f"faults.{harness}", *arguments]
    done = subprocess.run(words, cwd=TESTS, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_an_error_at_any_call_loses_nothing_and_blames_no_checkpoint() -> None:
    assert "24 faults, 0 bad" in run("errors", "--count", "4", "--seed", "1")


@pytest.mark.root
@root
def test_a_full_disk_is_told_of_and_folding_goes_on_when_there_is_room() -> None:
    assert "went on after" in run("filling")


@pytest.mark.root
@root
def test_a_power_cut_loses_nothing_that_was_said() -> None:
    assert "8 power cuts: 0 bad" in run("powercut", "--count", "8", "--seed", "1")


@pytest.mark.root
@root
def test_the_power_cuts_find_a_mergd_that_does_not_sync() -> None:
    said = run("powercut", "--count", "4", "--seed", "1", "--without-fsync")
    assert "4 power cuts without fsync: 4 bad" in said
