"""Checkpoints that are changed at a moment of chance while a real daemon folds them: it lives, and folds nothing mixed.

Each fold must be that of what lay there before, or of what lies there after, by the digest of its content and by the
bytes of the sum that is kept. python -m hostile.mutations --count 200 --seed 1 (in tests/, or `make mutations`).
"""

import argparse
import json
import os
import random
import signal
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import torch
from blake3 import blake3
from hostile.changes import CHANGES
from safetensors import SafetensorError
from support.commands import Command, eventually, start_forking
from support.merges import NO_LIMITS, make_merge
from support.models import Model, load_model, save_model, save_sharded

from mergd.plugins.sources.directory import Directory
from mergd.state.history import History
from mergd.state.records import Checkpoint

NOBODY = 65534  # whom a daemon becomes that root starts for a state of theirs: chmod 000 means nothing to root
AT_REST = ("folded", "refused", "held", "blocked", "vanished")


@dataclass
class Report:
    """What a run saw."""

    changes: Counter[str] = field(default_factory=Counter)
    folded: Counter[str] = field(default_factory=Counter)  # "before", "after" or "the same", by what was folded
    ends: Counter[str] = field(default_factory=Counter)  # of attempts
    wrong: list[str] = field(default_factory=list)
    died: bool = False

    def __str__(self) -> str:
        tables = {"changes": self.changes, "attempts": self.ends, "folded": self.folded}
        lines = [f"{name}: {dict(table.most_common())}" for name, table in tables.items()]
        return "\n".join([*lines, f"deaths: {int(self.died)}", f"wrong folds: {len(self.wrong)}", *self.wrong])


def big_model() -> Model:
    """Return a model whose fold goes through hundreds of blocks."""
    generator = torch.Generator().manual_seed(0)
    return {f"layer.{k}.weight": torch.randn(512, 512, generator=generator) for k in range(12)}


def digest_of(model: Model) -> str:
    """Return the digest of a content, computed here as docs/design.md says: over sorted name, dtype, shape and bytes."""
    whole = blake3()
    for name, tensor in sorted(model.items()):
        raw = blake3(tensor.numpy().tobytes()).hexdigest()
        whole.update(json.dumps([name, "F32", list(tensor.shape), raw]).encode() + b"\n")
    return whole.hexdigest()


class Trial:
    """One daemon, and one checkpoint after another that is changed under it."""

    def __init__(self, root: Path, seed: int) -> None:
        self.merge = make_merge(
            root, big_model(), rule="average", memory=1_000_000, quiet=0.2, rescan=0.2, keep_last=3, limits=NO_LIMITS
        )
        self.report = Report()
        self._chance = random.Random(seed)
        self._sum = {name: torch.zeros_like(tensor) for name, tensor in self.merge.model.items()}
        self._versions = 0
        self._patience = 0.5  # seconds of a fold, up to when it is changed
        open_to_all(root, self.merge.state)

    def run(self, count: int) -> Report:
        """Change so many checkpoints, and return what was seen."""
        names = list(CHANGES)
        with self.merge.running("run") as daemon:
            for k in range(count):
                self._one(daemon, f"c{k:04d}", names[k % len(names)])
                if self.report.died or self.report.wrong:
                    break
            daemon.send(signal.SIGTERM)
            self.report.died |= daemon.ended().code != 0 or "Traceback" in daemon.err
        return self.report

    def _one(self, daemon: Command, name: str, change: str) -> None:
        merge, place, aside = self.merge, self.merge.watch / name, self.merge.root / f"other-{name}"
        self._put(aside, change)
        before = self._put(place, change)
        eventually(lambda: not daemon.runs or any((merge.state / "drafts").iterdir()) or self._at_rest(name))
        time.sleep(self._chance.uniform(0, self._patience))
        CHANGES[change](place, aside, self._chance)
        eventually(lambda: not daemon.runs or self._at_rest(name))
        if change == "chmod 000":
            (place / "model.safetensors").chmod(0o644)
            eventually(lambda: not daemon.runs or self._at_rest(name))
        after = content(place)
        self.report.changes[change] += 1
        self.report.died |= not daemon.runs
        self._judge(name, change, before, after)
        clear(place, aside)

    def _put(self, place: Path, change: str) -> Model:
        """Save a checkpoint, there at once; returns its content, which differs from all others in every weight."""
        aside, model = self.merge.root / "aside", {n: t + self._chance.random() for n, t in self.merge.model.items()}
        save_sharded(aside, model) if "shard" in change else save_model(aside, model)
        for path in aside.iterdir():
            path.chmod(0o644)
        aside.rename(place)
        return model

    def _row(self, name: str) -> Checkpoint | None:
        return next((row for row in reversed(self.merge.checkpoints()) if row.name == name), None)

    def _at_rest(self, name: str) -> bool:
        """Whether the daemon has said its last word on what lies there now."""
        row, sighting = self._row(name), Directory(self.merge.watch).sight(self.merge.watch / name)
        if row is None:
            return False
        if sighting is None:
            return row.state in AT_REST
        waits = json.loads((self.merge.state / "status.json").read_text())["waits"].get(str(row.id), "")
        broken = row.state == "settling" and waits != "" and not waits.startswith(("no change", "nobody to write"))
        return row.fingerprint == sighting.fingerprint and (row.state in AT_REST or broken)

    def _judge(self, name: str, change: str, before: Model, after: Model | None) -> None:
        """Hold each new version against what lay there, by digest and by the bytes of the kept sum."""
        with History(self.merge.store.database) as history:
            rows = {row.id: row for row in history.checkpoints.all()}
            versions = history.versions()[self._versions :]
            self.report.ends.update(
                str(attempt.outcome)
                for row in rows.values()
                if row.name == name
                for attempt in history.checkpoints.attempts(row.id)
            )
        for version in versions:
            row = rows[version.checkpoint or 0]
            folded = next((m for m in (before, after) if m is not None and digest_of(m) == row.digest), None)
            if row.name != name or folded is None:
                self.report.wrong.append(f"{name}, {change}: {version} holds something else")
                continue
            same = after is not None and digest_of(after) == digest_of(before)
            self.report.folded["the same" if same else "before" if folded is before else "after"] += 1
            self._sum = {n: kept + (folded[n] - self.merge.model[n]) for n, kept in self._sum.items()}
            kept = self.merge.readouts(version.number)
            if any(not torch.equal(self._sum[n], kept[n]) for n in kept):
                self.report.wrong.append(f"{name}, {change}: the sum of {version} is another one")
            self._patience = 1.2 * sum(version.seconds.get(step, 0.0) for step in ("read", "decompose", "fold"))
        self._versions += len(versions)


def content(place: Path) -> Model | None:
    """Return what lies at a place now, None if it is no whole model."""
    try:
        model = load_model(place)
    except (OSError, SafetensorError):
        return None
    return model if model.keys() == big_model().keys() else None


def clear(*places: Path) -> None:
    """Take away what a change left."""
    for place in places:
        for path in (place, place.with_name(f"old-{place.name}")):
            if path.exists():
                for file in path.iterdir():
                    file.unlink()
                path.rmdir()


def open_to_all(root: Path, state: Path) -> None:
    """Let a daemon that root starts be nobody, who may read the base model and the watched folder."""
    if os.geteuid() != 0:
        return
    root.chmod(0o755)
    for path in (root / "base").iterdir():
        path.chmod(0o644)
    for path in (state, *state.rglob("*")):
        os.chown(path, NOBODY, NOBODY, follow_symlinks=False)


def mutate(count: int, seed: int) -> Report:
    """Run one daemon over so many checkpoints that change."""
    with tempfile.TemporaryDirectory() as folder:
        return Trial(Path(folder), seed).run(count)


def main() -> None:
    """Run it from the command line; exit 1 if the daemon died or folded what never lay there."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    start_forking()
    report = mutate(options.count, options.seed)
    print(report)
    idle = report.ends["changed"] < options.count // 4  # then the changes came too late, or nothing was folded
    raise SystemExit(report.died or bool(report.wrong) or idle)


if __name__ == "__main__":
    main()
