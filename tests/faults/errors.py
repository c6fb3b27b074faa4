"""A disk that is full, or fails, at every call of what changes a state: a fold, a rollback, a retention, re-merges; through the real command line.

After each: nothing that counted is lost, nothing that is promised is half, no checkpoint is to blame; and once the fault
is gone, going on makes the same bytes as a run without it. `make faults` has all of it.
"""

import argparse
import errno
import os
import random
import shutil
import sqlite3
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from faults.shim import FOR_EVER, KINDS, Faults, compile_shim
from support.commands import Ended
from support.merges import Sandbox, make_merge, set_in

from mergd.state.history import History

TAKING = ("write", "fsync", "fdatasync", "rename", "link", "symlink", "mkdir", "truncate", "allocate", "copy", "create")
CODES = (0, 69, 74)  # done, or waits, or nobody knows whether the history has it; never an unforeseen one
FAULTS: dict[str, dict[str, Any]] = {
    "full": {"error": errno.ENOSPC},
    "full from then on": {"error": errno.ENOSPC, "last": FOR_EVER, "kinds": TAKING},
    "fails": {"error": errno.EIO},
    "fails from then on": {"error": errno.EIO, "last": FOR_EVER},
}


@dataclass(frozen=True)
class Trip:
    """One command that changes the state, from a state where it has work to do."""

    name: str
    make: Callable[[Path], Sandbox]
    command: tuple[str, ...]
    again: tuple[str, ...]  # what goes on once the fault is gone
    is_task: bool = False  # whether it is written down, and done by whoever comes next


def three_folded(root: Path) -> Sandbox:
    """A merge of three versions, each of one checkpoint."""
    merge = make_merge(root, keep_last=10, keep_within=0)
    for name, seed in (("a", 1), ("b", 2), ("c", 3)):
        merge.drop(name, seed)
    merge.fold_all()
    return merge


def one_waits(root: Path) -> Sandbox:
    """The same, and a fourth checkpoint waits."""
    merge = three_folded(root)
    merge.drop("d", 4)
    return merge


def one_too_many(root: Path) -> Sandbox:
    """The same as at first, but no version need be kept any more that is neither head nor its parent."""
    merge = three_folded(root)
    set_in(merge.config, keep_last="1")
    return merge


TRIPS = (
    Trip("fold", one_waits, ("run", "--once"), ("run", "--once")),
    Trip("rollback", three_folded, ("rollback", "v1"), ("rollback", "v1")),
    Trip("retention", one_too_many, ("run", "--once"), ("run", "--once")),
    Trip("publish", three_folded, ("publish", "--scale", "2"), ("run", "--once"), is_task=True),
    Trip("remerge", three_folded, ("remerge", "--rule", "average"), ("run", "--once"), is_task=True),
    Trip("remerge at once", three_folded, ("remerge", "--rule", "pcb"), ("run", "--once"), is_task=True),
)


@dataclass(frozen=True)
class Seen:
    """What counts of a state: the versions with their files, the head, where the link leads, what lies there."""

    versions: tuple[tuple[int, str, bool], ...]
    files: tuple[tuple[str, str], ...]
    head: int
    pointed: int | None
    folders: tuple[str, ...]
    states: tuple[tuple[str, str], ...]

    def mended(self, other: "Seen") -> bool:
        """Whether it is the other one, but for what a start makes good: leftovers, and where the link leads."""
        return (self.versions, self.head) == (other.versions, other.head) and {*other.files} <= {*self.files}


def look(merge: Sandbox) -> Seen:
    """Return what counts of a state, read without any of the commands."""
    with sqlite3.connect(merge.store.database) as db:
        (sound,) = db.execute("pragma integrity_check").fetchone()
    db.close()
    assert sound == "ok", sound
    with History(merge.store.database) as history:
        versions, head = history.versions(), history.head()
        states = tuple((row.name, row.state) for row in history.checkpoints.all())
        outcomes = [
            tried.outcome for row in history.checkpoints.all() for tried in history.checkpoints.attempts(row.id)
        ]
    assert head is not None
    assert not any(outcome and outcome.startswith("error") for outcome in outcomes), f"a strike: {outcomes}"
    assert {state for _, state in states} <= {"settling", "ready", "folding", "folded"}, f"{states}"
    for version in versions:
        assert not version.kept or not merge.store.damaged(version.number), f"{version} is not as it was written"
    return Seen(
        tuple((version.number, version.digest, version.kept) for version in versions),
        tuple(sorted(file for v in versions if v.kept for file in merge.weight_files(v.number).items())),
        head.number,
        merge.store.pointed(),
        tuple(sorted(str(p.relative_to(merge.state)) for at in FOLDERS for p in (merge.state / at).iterdir())),
        states,
    )


def tasks(merge: Sandbox) -> int:
    """Return how many tasks were ever written down."""
    with sqlite3.connect(merge.store.database) as db:
        (count,) = db.execute("select count(*) from tasks").fetchone()
    db.close()
    return int(count)


FOLDERS = ("versions", "models", "drafts")


class Bench:
    """One trip, again and again from the same state, each time with another fault."""

    def __init__(self, trip: Trip, root: Path, faults: Faults) -> None:
        self.trip, self.faults = trip, faults
        self.merge = trip.make(root / trip.name)
        self._kept = root / f"{trip.name}-kept"
        shutil.copytree(self.merge.state, self._kept, symlinks=True, ignore=shutil.ignore_patterns("ballast"))
        self.before = look(self.merge)
        self._restore()
        faults.arm(self.merge.state)
        done = self.merge.mergd(*trip.command)
        faults.disarm()
        assert done.code == 0, done.err
        self.calls = faults.calls()
        self.after = look(self.merge)
        assert self.after != self.before, f"the {trip.name} had nothing to do"

    def _restore(self) -> None:
        shutil.rmtree(self.merge.state)
        shutil.copytree(self._kept, self.merge.state, symlinks=True)

    def strike(self, number: int, fault: str) -> Ended:
        """Let one call fail, hold what is left against what may be left, and go on without the fault."""
        self._restore()
        options = {"kinds": KINDS, "last": None} | FAULTS[fault]
        first = self._number_among(number, options["kinds"])
        self.faults.arm(self.merge.state, "fail", first=first, **options)
        ended = self.merge.mergd(*self.trip.command)
        self.faults.disarm()
        assert self.faults.fired, "the call never came"
        assert ended.code in CODES, f"exit code {ended.code}"
        assert "unforeseen" not in ended.err, "an unforeseen error"
        self._check(ended)
        self._go_on()
        return ended

    def _number_among(self, number: int, kinds: tuple[str, ...]) -> int:
        """Return which one a call is among those of some kinds; the next one of them if it is none."""
        return sum(call.kind in kinds for call in self.calls[: number - 1]) + 1

    def _check(self, ended: Ended) -> None:
        """What counts is what it was before or what it is to be: the latter if that was said."""
        now = look(self.merge)
        assert now.mended(self.after) or now.mended(self.before), f"{now}"
        assert now.pointed in (self.before.pointed, self.after.pointed), f"current leads to {now.pointed}"
        if ended.code == 0:
            assert now.mended(self.after), "it said that it was done"

    def _go_on(self) -> None:
        again = self.merge.mergd(*self.trip.again)
        assert again.code == 0, f"going on ended with {again.code}: {again.err}"
        if self.trip.is_task and not tasks(self.merge):  # nobody knows that it was asked for
            assert look(self.merge) == self.before, "what nobody asked for was done"
            again = self.merge.mergd(*self.trip.command)
            assert again.code == 0, f"asking again ended with {again.code}: {again.err}"
        if self.trip.name == "rollback":  # what a crash left is swept by those who fold
            assert look(self.merge).mended(self.after)
            assert self.merge.store.pointed() == self.after.pointed
            return
        assert look(self.merge) == self.after, f"{look(self.merge)} is not {self.after}"


def cases(benches: list[Bench], count: int, seed: int) -> Iterator[tuple[Bench, int, str]]:
    """Yield every call with every fault; or so many of them by chance, as many of each trip."""
    for bench in benches:
        every = [(number, fault) for number in range(1, len(bench.calls) + 1) for fault in FAULTS]
        possible = [
            (n, f)
            for n, f in every
            if "last" not in FAULTS[f] or bench.calls[n - 1].kind in FAULTS[f].get("kinds", KINDS)
        ]
        chosen = random.Random(seed).sample(possible, min(count, len(possible))) if count else possible
        yield from ((bench, number, fault) for number, fault in chosen)


def run(root: Path, faults: Faults, count: int, seed: int) -> int:
    """Try the cases; returns how many went wrong."""
    benches = [Bench(trip, root, faults) for trip in TRIPS]
    for bench in benches:
        kinds = ", ".join(f"{n} {kind}" for kind, n in Counter(call.kind for call in bench.calls).most_common())
        print(f"{bench.trip.name}: {len(bench.calls)} calls: {kinds}")
    done, bad, codes = 0, 0, Counter[int]()
    for bench, number, fault in cases(benches, count, seed):
        done += 1
        try:
            codes[bench.strike(number, fault).code] += 1
        except AssertionError as error:
            bad += 1
            faults.disarm()
            print(f"BAD {bench.trip.name}, call {number} ({bench.calls[number - 1]}), {fault}: {error}", flush=True)
    ends = ", ".join(f"{n} with {code}" for code, n in sorted(codes.items()))
    print(f"{done} faults, {bad} bad; ends: {ends}")
    return bad


def main() -> None:
    """Become a process that the shim watches, with all that it starts; then run."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=0, help="of each trip; 0: every call with every fault")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    if "FAULTS_CONTROL" not in os.environ:
        root = Path(tempfile.mkdtemp(prefix="mergd-faults-"))
        try:
            with Faults(root / "control") as faults:
                environment = os.environ | faults.environment(compile_shim(root))
                words = [sys.executable, "-m", "faults.errors", *sys.argv[1:]]
                sys.exit(os.spawnve(os.P_WAIT, sys.executable, words, environment))
        finally:
            shutil.rmtree(root)
    control = Path(os.environ["FAULTS_CONTROL"])
    with Faults(control) as faults:
        sys.exit(1 if run(control.parent, faults, arguments.count, arguments.seed) else 0)


if __name__ == "__main__":
    main()
