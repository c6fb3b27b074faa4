"""A checkpoint that ends the daemon, or that no memory suffices for: it comes last, and is held after three attempts."""

import os
import re
import resource
import signal
from pathlib import Path

import pytest
import torch
from support.commands import Command, eventually
from support.merges import Sandbox, make_merge
from support.models import fine_tuned

from mergd.state.history import History

pytestmark = pytest.mark.long

MIB = 2**20
LACK = re.compile("allocate memory|MemoryError|start new thread")  # as torch, Python and its threads say it


def head(merge: Sandbox) -> int:
    """Return the number of the newest version, 0 before the first."""
    return max((version.number for version in merge.versions()), default=0)


def outcomes(merge: Sandbox, name: str) -> list[str | None]:
    """Return how the attempts at a checkpoint ended, oldest first."""
    with History(merge.store.database) as history:
        row = next(row for row in history.checkpoints.all() if row.name == name)
        return [attempt.outcome for attempt in history.checkpoints.attempts(row.id)]


def held_for(merge: Sandbox, name: str) -> list[str]:
    """Return the codes for which a checkpoint is held; none if it is not."""
    row = next(row for row in merge.checkpoints() if row.name == name)
    return [reason.code for reason in row.reasons] if row.state == "held" else []


@pytest.fixture
def slow(tmp_path: Path) -> Sandbox:
    """A merge whose folds take a second, with three checkpoints in the watched folder."""
    generator = torch.Generator().manual_seed(0)
    merge = make_merge(tmp_path, {f"layer.{k}.weight": torch.randn(700, 700, generator=generator) for k in range(10)})
    for seed, name in enumerate(("a", "b", "c")):
        merge.drop(name, seed)
    return merge


def killed_while_it_folds(merge: Sandbox, name: str, attempt: int, after: int) -> None:
    """Start a daemon, and kill it in the middle of an attempt at a checkpoint, which comes after so many versions."""
    with merge.running("run") as daemon:
        eventually(lambda: name in merge.states() and len(outcomes(merge, name)) == attempt)
        assert head(merge) == after
        daemon.send(signal.SIGKILL)
        assert daemon.ended().code == -signal.SIGKILL


def test_what_ends_the_daemon_comes_after_the_others_and_is_held_the_third_time(slow: Sandbox) -> None:
    killed_while_it_folds(slow, "a", attempt=1, after=0)
    killed_while_it_folds(slow, "a", attempt=2, after=2)
    killed_while_it_folds(slow, "a", attempt=3, after=2)
    with slow.running("run"):
        eventually(lambda: held_for(slow, "a") == ["no-verdict"])
    assert [entry["checkpoint"]["name"] for entry in slow.log()] == ["c", "b"]
    assert (outcomes(slow, "a"), outcomes(slow, "b"), outcomes(slow, "c")) == ([None] * 3, ["folded"], ["folded"])
    assert not os.listdir(slow.state / "drafts")
    assert slow.mergd("verify").code == 0


def limit(daemon: Command, more: int) -> None:
    """Let a daemon have no more memory than it has, and so much; a negative number ends that."""
    lines = Path(f"/proc/{daemon.pid}/status").read_text().splitlines()
    now = 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmSize:"))
    most = now + more if more >= 0 else resource.RLIM_INFINITY
    resource.prlimit(daemon.pid, resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))


def tried_again(merge: Sandbox, name: str, attempt: int, more: int) -> None:
    """Let another daemon, with so much memory more than it takes, try a checkpoint once more."""
    merge.mergd("pause")
    with merge.running("run") as daemon:
        eventually(lambda: (merge.state / "control.sock").exists() and "watching" in daemon.err)
        limit(daemon, more)
        assert merge.mergd("resume").code == 0
        eventually(lambda: [outcome is not None for outcome in outcomes(merge, name)] == [True] * attempt)
        stop(daemon)


def stop(daemon: Command) -> None:
    """Stop a daemon, which must still be well."""
    daemon.send(signal.SIGTERM)
    assert daemon.ended().code == 0


def test_what_no_memory_suffices_for_is_held_the_third_time_and_the_others_are_folded(tmp_path: Path) -> None:
    base = {"table.weight": torch.zeros(1, 16 * MIB)}  # one row is never cut
    merge = make_merge(tmp_path, base, rule="average")
    merge.drop("first", fine_tuned(base, 0))
    too_little = 100 * MIB  # a fold takes 192, and its threads some of them
    with merge.running("run") as daemon:
        eventually(lambda: head(merge) == 1)
        limit(daemon, too_little)
        merge.drop("a", 1)
        eventually(lambda: "a" in merge.states() and [outcome is None for outcome in outcomes(merge, "a")] == [False])
        limit(daemon, -1)
        merge.drop("b", 2)
        merge.drop("c", 3)
        eventually(lambda: head(merge) == 3)
        stop(daemon)
    tried_again(merge, "a", 2, too_little)
    tried_again(merge, "a", 3, too_little)
    assert held_for(merge, "a") == ["no-verdict"]
    assert all(LACK.search(str(outcome)) for outcome in outcomes(merge, "a")), outcomes(merge, "a")
    assert [entry["checkpoint"]["name"] for entry in merge.log()] == ["c", "b", "first"]
