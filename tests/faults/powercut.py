"""Power cuts on a real ext4: a daemon folds, rolls back and retains on a disk that remembers; then disks that cuts leave.

Each crash image is mounted and the real command line goes on from it. A checkpoint adds 1 to one number of the kept sum, so
that one that is lost, or folded twice, shows in the slots of every version. `make powercut COUNT=150 SEED=1`.
"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from faults.disk import Recording, remembering
from faults.errors import look
from faults.mounts import make_ext4, mounted, own_namespace
from support.commands import eventually, start_forking
from support.merges import NO_LIMITS, Sandbox, make_merge

from mergd.daemon.asking import said_by
from mergd.state.history import History
from mergd.state.records import Move, Version

DISK = 192 << 20  # bytes; sparse
CHECKPOINTS = 9
ROLLED_BACK_AFTER = 5  # folds; to the version before
WEIGHT = "layer.weight"
BASE = {WEIGHT: torch.zeros(CHECKPOINTS, 64), "layer.bias": torch.ones(64)}


def one_hot(number: int) -> dict[str, torch.Tensor]:
    """Return the checkpoint that adds 1 to one number of the sum."""
    weight = torch.zeros(CHECKPOINTS, 64)
    weight[number, 0] = 1.0
    return BASE | {WEIGHT: weight}


@dataclass
class Said:
    """What mergd said was done, each with where the log was by then."""

    versions: list[tuple[Version, int]] = field(default_factory=list)
    moves: list[tuple[Move, int]] = field(default_factory=list)
    began: int = 0  # positions: the first and the last that count
    ended: int = 0


def has_folded(merge: Sandbox, count: int) -> bool:
    """Whether mergd says that so many are folded."""
    return bool(said_by(merge.store).get("folded") == count)


def work(merge: Sandbox, log: Path) -> Said:
    """Let a daemon fold one checkpoint after the other, roll back once, and go on."""
    said = Said()
    with merge.running("run") as daemon:
        eventually(lambda: (merge.state / "control.sock").exists())
        for number in range(CHECKPOINTS):
            merge.drop(f"c{number}", one_hot(number))
            eventually(partial(has_folded, merge, number + 1))
            at = log.stat().st_size
            with History(merge.store.database) as history:
                said.versions.append((history.versions(1)[0], at))
            if number + 1 == ROLLED_BACK_AFTER:
                assert merge.mergd("rollback").code == 0
                at = log.stat().st_size
                with History(merge.store.database) as history:
                    said.moves.append((history.moves(1)[0], at))
        said.ended = log.stat().st_size
        daemon.send(signal.SIGTERM)
        assert daemon.ended().code == 0
    return said


def record(root: Path) -> tuple[Sandbox, Said, Recording]:
    """Have it all done on a disk that remembers."""
    fresh, image, log = make_ext4(root / "fresh", DISK), root / "image", root / "log"
    shutil.copyfile(fresh, image)
    log.touch()
    with remembering(image, log, root / "disk") as disk, mounted(disk, root / "merge" / "state"):
        merge = make_merge(
            root / "merge", BASE, None, rule="task_arithmetic", limits=NO_LIMITS, keep_last=3, keep_within=0
        )
        os.sync()
        began = log.stat().st_size
        said = work(merge, log)
    said.began = began
    return merge, said, Recording(fresh, log)


def check(merge: Sandbox, said: Said, position: int) -> None:
    """Have mergd go on from what a cut left, and assert that all that it had said still holds, and no more than once."""
    ended = merge.mergd("run", "--once")
    assert ended.code == 0, f"it ended with {ended.code}: {' / '.join(ended.complaint)}"
    seen = look(merge)
    assert seen.pointed == seen.head, f"current leads to {seen.pointed}, the head is {seen.head}"
    assert not any(name.startswith("drafts") for name in seen.folders), "a draft is left"
    assert merge.mergd("verify").code == 0
    with History(merge.store.database) as history:
        versions = {version.number: version for version in history.versions()}
        moves = history.moves()
        names = {row.id: row.name for row in history.checkpoints.all()}
        lines = {n: [names[v.checkpoint or 0] for v in history.lineage(n)] for n in versions}
    for version, at in said.versions:  # one that was folded again has another time
        now = versions.get(version.number)
        assert at > position or (now and now.created_at == version.created_at), f"{version} is lost"
    for move, at in said.moves:
        assert at > position or move in moves, f"the rollback to v{move.to_version} is lost"
    folded = Counter(names[version.checkpoint or 0] for version in versions.values())
    assert folded == Counter(f"c{n}" for n in range(CHECKPOINTS)), f"folded were {folded}"
    for number, version in versions.items():
        if version.kept:
            check_sum(merge, number, lines[number])


def check_sum(merge: Sandbox, number: int, line: list[str]) -> None:
    """Assert that a version's slots are the sum of its line's checkpoints, to the last bit."""
    expected = torch.zeros(CHECKPOINTS, 64)
    for name in line:
        expected[int(name[1:]), 0] += 1.0
    assert torch.equal(merge.readouts(number)[WEIGHT], expected), f"the slots of v{number} are not {line}"


def run(root: Path, count: int, seed: int, control: bool) -> list[str]:
    """Cut the power so often; returns what was wrong with how many. A control is cut when something was said already."""
    own_namespace()
    start_forking()
    merge, said, recording = record(root)
    writes = len(recording.records) - recording.flushes
    print(f"{writes} writes, {recording.flushes} flushes; {len(said.versions)} folds, {len(said.moves)} rollback said")
    chance, bad = random.Random(seed), list[str]()
    first = recording.first_after(said.versions[0][1] if control else said.began)
    last = recording.first_after(said.ended)
    for _ in range(count):
        cut = chance.randint(first, last)
        position = recording.records[cut - 1].end
        try:
            with mounted(recording.image(cut, chance, root / "crashed"), merge.state):
                check(merge, said, position)
        except (AssertionError, OSError, subprocess.CalledProcessError) as error:
            bad.append(f"before record {cut}: {error}")
    return bad


def without_fsync() -> None:
    """Start this again as a process, with all that it starts, whose fsync does nothing."""
    folder = Path(tempfile.mkdtemp(prefix="mergd-nosync-"))
    library, source = folder / "nosync.so", Path(__file__).with_name("nosync.c")
    try:
        subprocess.run(["gcc", "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
        words = [sys.executable, "-m", "faults.powercut", *sys.argv[1:]]
        sys.exit(os.spawnve(os.P_WAIT, sys.executable, words, os.environ | {"LD_PRELOAD": str(library)}))
    finally:
        shutil.rmtree(folder)


def main() -> None:
    """Cut the power, and end with 0 if nothing was wrong; or, with the control, if nearly all was."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=150)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--without-fsync", action="store_true", help="the control, which must be found wanting")
    arguments = parser.parse_args()
    if arguments.without_fsync and "LD_PRELOAD" not in os.environ:
        without_fsync()
    root = Path(tempfile.mkdtemp(prefix="mergd-powercut-", dir="/dev/shm"))
    try:
        bad = run(root, arguments.count, arguments.seed, arguments.without_fsync)
    finally:
        shutil.rmtree(root)
    for line in bad[:10]:
        print(f"BAD {line}")
    print(f"{arguments.count} power cuts{' without fsync' * arguments.without_fsync}: {len(bad)} bad")
    wanted = len(bad) > 0.9 * arguments.count if arguments.without_fsync else not bad
    sys.exit(0 if wanted else 1)


if __name__ == "__main__":
    main()
