"""A small file system that fills up under a daemon, to the last byte, and is freed again: it says so, waits, and goes on.

The file system is a real ext4 on a loop device. `make full-disk` has also the disk that fills up in the middle of a fold.
"""

import argparse
import errno
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from faults.mounts import make_ext4, mounted, own_namespace
from support.commands import Command, eventually, start_forking
from support.merges import Sandbox, make_merge

from mergd.daemon.asking import said_by

DISK = 192 << 20  # bytes: a version of 8 MB, 64 MiB that mergd leaves free, and its ballast of 16 MiB
SOON = 60.0  # seconds from the moment that there is room again


@contextmanager
def filled(merge: Sandbox) -> Iterator[int]:
    """Take every byte that is free, for a while."""
    path = merge.state / "somebody-elses"
    fd = os.open(path, os.O_WRONLY | os.O_CREAT)
    try:
        take(fd)
        yield fd
    finally:
        os.close(fd)
        path.unlink()


def take(fd: int) -> None:
    """Write until there is no room: large pieces, then small ones."""
    for piece in (1 << 20, 4096):
        try:
            while True:
                os.write(fd, bytes(piece))
        except OSError as error:
            assert error.errno == errno.ENOSPC, error


def free(merge: Sandbox) -> int:
    """Return how many bytes are free."""
    return shutil.disk_usage(merge.state).free


def trouble(merge: Sandbox) -> str:
    """Return what keeps the daemon from folding, as status.json has it and `mergd status` says it."""
    written = str(said_by(merge.store).get("trouble", ""))
    return written if written in merge.mergd("status").out else ""


def folded(merge: Sandbox) -> int:
    return int(said_by(merge.store).get("folded", 0))


def listening(merge: Sandbox) -> bool:
    return (merge.state / "control.sock").exists()


def end(daemon: Command) -> None:
    daemon.send(signal.SIGTERM)
    assert daemon.ended().code == 0, daemon.err


def paused(merge: Sandbox) -> None:
    """Wait until it says with its numbers that it is paused; no checkpoint is to blame."""
    said = eventually(lambda: trouble(merge), SOON)
    assert said.startswith("paused: disk full: a version needs "), said
    assert " bytes, " in said and "are free" in said, said
    assert set(merge.states().values()) <= {"folded", "ready", "settling"}, merge.states()


def resumed(merge: Sandbox, count: int) -> float:
    """Wait until so many are folded; returns after how many seconds."""
    since = time.monotonic()
    eventually(lambda: folded(merge) == count and not said_by(merge.store)["trouble"], SOON)
    return time.monotonic() - since


def commands_work(merge: Sandbox) -> None:
    """With no byte free, a person rolls back, and back again, pauses and resumes."""
    head = merge.store.pointed()
    for command in ("rollback", "rollback", "pause", "resume"):
        done = merge.mergd(command)
        assert done.code == 0, f"{command}: {done.err}"
    assert merge.store.pointed() == head


def while_it_waits(merge: Sandbox) -> float:
    """The disk is full when the third checkpoint comes."""
    with merge.running("run") as daemon:
        for number in (1, 2):
            merge.drop(f"c{number}", number)
        eventually(lambda: folded(merge) == 2)
        with filled(merge):
            merge.drop("c3", 3)
            paused(merge)
            commands_work(merge)
            paused(merge)
        seconds = resumed(merge, 3)
        end(daemon)
    return seconds


def while_none_runs(merge: Sandbox) -> float:
    """The disk is full when nobody is there, and when the daemon starts."""
    with filled(merge):
        commands_work(merge)
        with merge.running("run") as daemon:
            merge.drop("c4", 4)
            paused(merge)
            end(daemon)
    merge.drop("c5", 5)
    with merge.running("run") as daemon:
        seconds = resumed(merge, 5)
        end(daemon)
    return seconds


def in_a_fold(merge: Sandbox, number: int) -> float:
    """The disk fills up when there is a draft already; who fills it takes the ballast too, as soon as it is released."""
    with merge.running("run") as daemon:
        eventually(lambda: listening(merge))
        merge.drop(f"c{number}", number)
        while not any((merge.state / "drafts").glob("0*/slots/*")):
            assert folded(merge) < number, "it was folded too soon to be disturbed"
        with filled(merge) as fd:
            while not trouble(merge) and folded(merge) != number:
                take(fd)
            if folded(merge) != number:
                paused(merge)
        seconds = resumed(merge, number)
        end(daemon)
    return seconds


def sound(merge: Sandbox) -> None:
    """Nothing is left over, and all files are as they were written."""
    assert merge.mergd("verify").code == 0
    assert not any((merge.state / "drafts").iterdir())
    assert merge.store.ballast.stat().st_blocks * 512 >= 16 << 20


def run(root: Path, long: bool) -> None:
    """Go through it."""
    own_namespace()
    start_forking()
    generator = torch.Generator().manual_seed(0)
    base = {f"layer.{k}.weight": torch.randn(512, 512, generator=generator) for k in range(4)}
    with mounted(make_ext4(root / "image", DISK), root / "state"):
        merge = make_merge(root, base, rule="average", keep_last=2, keep_within=0, quiet=0)
        print(f"full while it waited: went on after {while_it_waits(merge):.1f} s")
        sound(merge)
        print(f"full while none ran: went on after {while_none_runs(merge):.1f} s")
        sound(merge)
        for number in range(6, 11) if long else ():
            print(f"full in the middle of fold {number}: went on after {in_a_fold(merge, number):.1f} s")
            sound(merge)


def main() -> None:
    """Fill it up; ends with 0 if all went well."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--long", action="store_true", help="also in the middle of five folds")
    arguments = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="mergd-filling-"))
    try:
        run(root, arguments.long)
    finally:
        shutil.rmtree(root)
    sys.exit(0)


if __name__ == "__main__":
    main()
