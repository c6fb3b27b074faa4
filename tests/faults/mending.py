"""A disk that the merge's own versions fill: what `mergd status` says heads a section of docs/operating.md, which mends it."""

import shutil
import signal
import sys
import tempfile
from pathlib import Path

import torch
from faults.mounts import mounted_memory, own_namespace
from support.commands import Command, eventually, start_forking
from support.merges import Sandbox, make_merge
from support.operating import follow, status_says

DISK = 112 << 20  # bytes: 64 MiB that mergd leaves free, its ballast of 16 MiB, and some versions of 8 MB


def folds_until_it_is_full(merge: Sandbox) -> int:
    """Drop checkpoints until one waits; returns how many there are."""
    for number in range(1, 20):
        merge.drop(f"c{number}", number)
        eventually(lambda: count(merge) == number or status_says(merge, "trouble"))  # noqa: B023 - called at once
        if count(merge) < number:
            return number
    raise AssertionError("it never was full")


def count(merge: Sandbox) -> int:
    return list(merge.states().values()).count("folded")


def mend(merge: Sandbox, daemon: Command) -> None:
    """Do what the page says of what the status says."""
    last = folds_until_it_is_full(merge)
    heading = status_says(merge, "trouble")
    assert heading == "trouble: paused: disk full: a version needs … bytes, … are free", heading

    def systemctl(verb: str) -> None:
        assert verb == "reload"
        daemon.send(signal.SIGHUP)
        eventually(lambda: "the configuration was read again" in daemon.err)

    names = {"NAME": "mended", "STATE": merge.state, "MERGD_CONFIG": merge.config}
    before = merge.used()
    print(*follow(heading, names, merge.mergd, systemctl))
    assert merge.used() < before
    eventually(lambda: merge.states()[f"c{last}"] == "folded")
    eventually(lambda: not status_says(merge, "trouble"))


def main() -> None:
    """Fill it, and mend it; ends with 0 if that went well."""
    own_namespace()
    start_forking()
    root = Path(tempfile.mkdtemp(prefix="mergd-mending-"))
    generator = torch.Generator().manual_seed(0)
    base = {f"layer.{k}.weight": torch.randn(512, 512, generator=generator) for k in range(4)}
    try:
        with mounted_memory(root / "state", DISK):
            merge = make_merge(root, base, rule="average")
            with merge.running("run") as daemon:
                mend(merge, daemon)
                daemon.send(signal.SIGTERM)
                assert daemon.ended().code == 0, daemon.err
    finally:
        shutil.rmtree(root)
    sys.exit(0)


if __name__ == "__main__":
    main()
