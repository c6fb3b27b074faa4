"""One bit flipped in a state's files, again and again: what verify, the scrub, a fold and the database's check find of it.

python -m rot.flips --count 1000 --seed 1 (in tests/, or `make flips`).
"""

import argparse
import os
import random
import sqlite3
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from support.merges import Sandbox, make_merge
from support.models import CONFIG, save_model, tiny_base

from mergd.daemon.auditing import audit
from mergd.daemon.checker import Pace, check_version
from mergd.daemon.requests import Verify
from mergd.daemon.settings import PINNED
from mergd.daemon.verifying import chosen, verify_here
from mergd.state.errors import Damaged, Misconfigured, Unavailable
from mergd.state.history import History
from mergd.state.store import PARTS

SEEDS = {"a": 1, "b": 2, "c": 3}


def three_versions(root: Path) -> Sandbox:
    """Return a merge with every kind of file: slots, shards and their index, config.json and another side file."""
    save_model(root / "base", tiny_base(), CONFIG)
    (root / "base" / "tokenizer.json").write_text('{"version": "1.0"}\n')
    merge = make_merge(root, shard_size=300)
    for name, seed in SEEDS.items():
        merge.drop(name, seed)
    merge.fold_all()
    return merge


def files_of(merge: Sandbox, version: int | None = None) -> list[Path]:
    """Return every file of a version, or of all kept ones."""
    name = f"{version:06d}" if version else "0*"
    paths = [*merge.store.versions.glob(f"{name}/*"), *merge.store.models.glob(f"{name}/*")]
    return sorted(path for path in paths if not path.parent.is_symlink())


def flip(path: Path, bit: int) -> None:
    """Flip one bit of a file as a disk does: nothing else of it changes, not even its time."""
    before = path.stat()
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def verified(merge: Sandbox, version: str | None = None) -> list[str]:
    """Return what `mergd verify` finds damaged, where no daemon runs."""
    with History(merge.store.database, write=True) as history:
        answer = verify_here(Verify(version=version), history, merge.store)
    assert answer["sound"] == (not answer["faults"])
    return [fault["what"] for fault in answer["faults"]]


def is_found(merge: Sandbox) -> bool:
    """Whether verify, or the opening of the database before it, says that something is damaged."""
    try:
        with History(merge.store.database) as history:
            faults = audit(history, merge.store, chosen(history, merge.store, Verify()))
    except (Damaged, Misconfigured, Unavailable, sqlite3.Error):
        return True
    return any(fault.damage for fault in faults)


def told_by(merge: Sandbox) -> list[object]:
    """Return what the database says that a fold or a rollback goes by."""
    with History(merge.store.database) as history:
        counted = [
            (v.number, v.parent, v.cause, v.checkpoint, v.totals, v.scale, v.digest, v.slots_kept, v.model_kept)
            for v in history.versions()
        ]
        rows = [(row.id, row.state, row.digest, row.place, row.source) for row in history.checkpoints.all()]
        pins = {key: value for key, value in history.pins().items() if key in (*PINNED, "base_commit", "base_digest")}
        return [counted, rows, pins, history.contributions.in_line(3, 9), history.head() == history.version(3)]


@dataclass
class Report:
    """What a run saw, by kind of file."""

    flips: Counter[str] = field(default_factory=Counter)
    found: Counter[str] = field(default_factory=Counter)
    missed: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"{kind}: {n} flips, {self.found[kind]} found" for kind, n in sorted(self.flips.items())]
        return "\n".join([*lines, f"missed, though they count: {len(self.missed)}", *self.missed])


def in_files(merge: Sandbox, count: int, chance: random.Random, report: Report) -> None:
    """Flip so many bits of versions' files; what reads a version whole must find each."""
    files = files_of(merge)
    for _ in range(count):
        path = chance.choice(files)
        bit = chance.randrange(8 * path.stat().st_size)
        flip(path, bit)
        number, kind = int(path.parent.name), path.name.split("-")[0]
        found = check_version(merge.store, number, PARTS, Pace()).damaged == (str(path.relative_to(merge.state)),)
        flip(path, bit)
        note(report, kind, found, "" if found else f"{path}, bit {bit}")


def in_database(merge: Sandbox, count: int, chance: random.Random, report: Report) -> None:
    """Flip so many bits of the database where it is not empty; each is found, or nothing that counts is different."""
    with History(merge.store.database, write=True) as history:
        history.tidy()
    assert not is_found(merge)
    truth, path = told_by(merge), merge.store.database
    whole = path.read_bytes()
    used = [at for at in range(len(whole)) if whole[at]]
    for _ in range(count):
        bit = 8 * chance.choice(used) + chance.randrange(8)
        flip(path, bit)
        found = is_found(merge)
        note(report, path.name, found, "" if found or told_by(merge) == truth else f"{path.name}, bit {bit}")
        path.write_bytes(whole)


def note(report: Report, kind: str, found: bool, missed: str) -> None:
    """Add one flip to a report."""
    report.flips[kind] += 1
    report.found[kind] += found
    report.missed += [missed] if missed else []


def flips(count: int, seed: int) -> Report:
    """Flip so many bits in the files, and a tenth as many in the database."""
    report, chance = Report(), random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        merge = three_versions(Path(folder))
        in_files(merge, count, chance, report)
        in_database(merge, count // 10, chance, report)
    return report


def main() -> None:
    """Run it from the command line; exit 1 if a flip was missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    report = flips(options.count, options.seed)
    print(report)
    raise SystemExit(bool(report.missed))


if __name__ == "__main__":
    main()
