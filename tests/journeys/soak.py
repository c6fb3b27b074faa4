"""Many folds by one daemon, with rollbacks, duplicates and refused checkpoints between them: does anything grow?

After each round memory, open files, threads and disk are looked at; slopes are those of straight lines through what came
after a warm-up, in which caches, pools and what is looked back on have filled. python -m journeys.soak --count 1000 (in
tests/, or `make soak`).
"""

import argparse
import os
import re
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from pathlib import Path
from statistics import linear_regression

import torch
from support.commands import Command, eventually, start_forking
from support.merges import NO_LIMITS, Sandbox, make_merge
from support.models import Model, fine_tuned

from mergd.daemon.retention import Keep
from mergd.state.history import History

KEEP = 5  # versions
SPARE = 64 * 2**20  # bytes of disk besides the versions
ROUND = 10  # folds, after which the daemon and its state are looked at
EVERY = {"refused": 1, "duplicate": 2, "rollback": 5}  # rounds
KIB = 2**10
LOOKS, PAUSE = 10, 0.05  # for each sample; seconds between them
MODELS, _ = Keep(last=KEEP).most(tags=0)  # both ends of a person's last moves are kept too


@dataclass(frozen=True)
class Sample:
    """What the daemon and its state took after one round."""

    rss: int  # bytes
    files: int
    threads: int
    weights: int  # bytes on disk: slots, published models, drafts
    database: int  # bytes
    manifests: int  # bytes on disk, with their folders: what is left of versions whose files are dropped
    seconds: float  # for each fold


@dataclass
class Report:
    """What a run saw."""

    version: int = 0  # bytes on disk of one
    samples: list[Sample] = field(default_factory=list)  # after the warm-up
    between: Counter[str] = field(default_factory=Counter)
    ended_well: bool = False

    def values(self, what: str) -> list[float]:
        return [getattr(sample, what) for sample in self.samples]

    def slope(self, what: str) -> float:
        """Return by how much something grew in each fold."""
        values = self.values(what)
        return linear_regression(range(len(values)), values).slope / ROUND

    def broken(self, rss_slope: float) -> list[str]:
        """Return the promises that were broken, memory's for so many KiB a fold."""
        most = max(self.values("weights"))
        promises = {
            f"memory grows by at most {rss_slope:g} KiB a fold": self.slope("rss") <= rss_slope * KIB,
            "open files stay as many": self._stays("files"),
            "threads stay as many": self._stays("threads"),
            "the disk is bounded by the kept versions": most <= (KEEP + 2) * self.version + SPARE,
            "nothing but its manifest stays of a dropped version": most <= (MODELS + 1) * self.version,
            "the daemon ends well": self.ended_well,
        }
        return [promise for promise, kept in promises.items() if not kept]

    def _stays(self, what: str) -> bool:
        """Whether there are as many in the last third as in the first: some may come and go, none may stay."""
        values = self.values(what)
        third = max(2, len(values) // 3)
        return min(values[-third:]) <= max(values[:third])

    def __str__(self) -> str:
        lines = [f"{ROUND * len(self.samples)} folds after the warm-up; in all {dict(self.between)}"]
        for what in (each.name for each in fields(Sample)):
            values = self.values(what)
            first, last, slope = values[0], values[-1], self.slope(what)
            lines.append(
                f"{what}: {first:,.6g} first, {last:,.6g} last, {max(values):,.6g} at most, {slope:+,.4g} a fold"
            )
        return "\n".join([*lines, f"a version takes {self.version:,} bytes on disk; {KEEP} are kept"])


def small_model() -> Model:
    """Return a model with a matrix, a lookup table and a bias: 0.8 MB."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"embed_tokens.weight": (1000, 128), "layer.proj.weight": (256, 256), "layer.proj.bias": (256,)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


class Soak:
    """One daemon, and one checkpoint after another."""

    def __init__(self, root: Path, seed: int) -> None:
        self.merge = make_merge(root, small_model(), keep_last=KEEP, keep_within=0, rescan=0.5, limits=NO_LIMITS)
        self.report = Report()
        self._seed = seed
        self._made = 0  # checkpoints

    def run(self, warm_up: int, count: int) -> Report:
        """Fold so many checkpoints before anything is looked at, and so many after; return what was seen."""
        with self.merge.running("run") as daemon:
            for done in range(-warm_up, count, ROUND):
                began = time.monotonic()
                self._round(daemon)
                if self.report.version == 0:
                    self.report.version = disk(self.merge.state)[0] // len(self.merge.versions()[-KEEP:])
                if done >= 0:
                    self.report.samples.append(sample(daemon, self.merge, (time.monotonic() - began) / ROUND))
            daemon.send(signal.SIGTERM)
            ended = daemon.ended()
            self.report.ended_well = ended.code == 0 and "Traceback" not in ended.err
        return self.report

    def _round(self, daemon: Command) -> None:
        """Have one round folded, with what is due besides, and take it away again as users do."""
        number = self._made // ROUND + 1
        models = [fine_tuned(self.merge.model, self._seed * 10**6 + self._made + k) for k in range(ROUND)]
        names = {f"c{self._made + k:06d}": model for k, model in enumerate(models)}
        expected = dict.fromkeys(names, "folded")
        if number % EVERY["refused"] == 0:
            names[f"r{number:06d}"], expected[f"r{number:06d}"] = spoiled(models[0]), "refused"
        if number % EVERY["duplicate"] == 0:
            names[f"d{number:06d}"], expected[f"d{number:06d}"] = models[-1], "folded"
        for name, model in names.items():
            self.merge.drop(name, model)
        eventually(lambda: not daemon.runs or self._states(names) == expected)
        assert daemon.runs, daemon.err
        for name in names:
            self.merge.remove(name)
        if number % EVERY["rollback"] == 0:
            self._roll_back()
        self._made += ROUND
        self.report.between.update(what for what, rounds in EVERY.items() if number % rounds == 0)

    def _states(self, names: Iterable[str]) -> dict[str, str]:
        with History(self.merge.store.database) as history:
            rows = {name: history.checkpoints.at("directory", str(self.merge.watch / name)) for name in names}
        return {name: row.state for name, row in rows.items() if row}

    def _roll_back(self) -> None:
        head = int(os.readlink(self.merge.store.current))
        before = self.merge.store.manifest(head)["parent"]
        assert self.merge.mergd("rollback", f"v{before}").code == 0
        assert self.merge.mergd("resume").code == 0


def spoiled(model: Model) -> Model:
    """Return a checkpoint that only its content gives away: a weight is no number."""
    return model | {"layer.proj.bias": torch.full((256,), torch.nan)}


def sample(daemon: Command, merge: Sandbox, seconds: float) -> Sample:
    """Look at a daemon and its state: what comes and goes is not what stays, so that the least of several looks counts."""
    rss, threads, files = (min(values) for values in zip(*(_look(daemon.pid) for _ in range(LOOKS)), strict=True))
    return Sample(rss * KIB, files, threads, *disk(merge.state), seconds)


def _look(pid: int) -> tuple[int, int, int]:
    """Return a process's memory in KiB, its threads and its open files, and let a moment pass."""
    status = Path(f"/proc/{pid}/status").read_text()
    rss, threads = (int(re.findall(rf"^{key}:\s+(\d+)", status, re.MULTILINE)[0]) for key in ("VmRSS", "Threads"))
    files = len(os.listdir(f"/proc/{pid}/fd"))
    time.sleep(PAUSE)
    return rss, threads, files


def disk(state: Path) -> tuple[int, int, int]:
    """Return the bytes on disk of weights and side files (each inode once), of the database, and of manifests."""
    weights: dict[int, int] = {}
    manifests = 0
    for at, folders, names in os.walk(state):
        manifests += 4 * KIB * len(folders) * at.endswith("/versions")
        for name in names if at != str(state) else ():
            try:
                status = os.lstat(f"{at}/{name}")
            except FileNotFoundError:  # the daemon is at work
                continue
            if name == "manifest.json":
                manifests += status.st_blocks * 512
            else:
                weights[status.st_ino] = status.st_blocks * 512
    return sum(weights.values()), (state / "mergd.db").stat().st_size, manifests


def soak(warm_up: int, count: int, seed: int) -> Report:
    """Run one daemon over so many checkpoints."""
    with tempfile.TemporaryDirectory() as folder:
        return Soak(Path(folder), seed).run(warm_up, count)


def main() -> None:
    """Run it from the command line; exit 1 if a promise was broken."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--warm-up", type=int, default=1000, help="folds before; a daemon looks back on a thousand")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    start_forking()
    report = soak(options.warm_up, options.count, options.seed)
    print(report)
    broken = report.broken(rss_slope=1.0)
    print("broken: " + ("; ".join(broken) or "nothing"))
    raise SystemExit(bool(broken))


if __name__ == "__main__":
    main()
