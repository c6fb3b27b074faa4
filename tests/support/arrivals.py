"""Many checkpoints arrive in one watched folder, in every style; a real daemon folds them, and each is judged."""

import os
import random
import shutil
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import torch
from support.arriving import Arrival
from support.commands import eventually
from support.merges import NO_LIMITS, make_merge
from support.models import Model, fine_tuned, save_sharded
from support.styles import STYLES

from mergd.daemon.base import read_contents
from mergd.daemon.forming import content_digest
from mergd.daemon.progress import Progress
from mergd.plugins.formats.interface import Candidate
from mergd.plugins.sources.directory import Directory
from mergd.state.records import Checkpoint

NOBODY = 65534
SEEN_WITHIN = 1.0  # seconds, that something changed
ENDED = ("folded", "held", "refused")


@dataclass(frozen=True)
class Pace:
    """How long copies stall, and how patient the daemon is; all in seconds."""

    quiet: float
    quiet_unsure: float
    stall_up_to: float
    stall_once: float  # of the copy that stalls, and of what no rule can know: longer than every quiet time
    grace: float  # after completion and quiet, for the fold


AS_SHIPPED = Pace(quiet=5, quiet_unsure=30, stall_up_to=15, stall_once=40, grace=10)


@dataclass(frozen=True)
class Judged:
    """How one arrival ended."""

    arrival: Arrival
    early: int  # folds of what was not complete
    seconds: float  # from completion to the fold, or to what a person must decide
    state: str


class Arrivals:
    """A merge that checkpoints arrive at; where the tests run as root, its daemon is another user than they are."""

    def __init__(
        self, root: Path, pace: Pace, seed: int, *, other_user: bool = True, marked_only: bool = False
    ) -> None:
        self.pace, self.chance, self._root = pace, random.Random(seed), root
        self.other_user = other_user and os.geteuid() == 0
        self._base = small_base()
        self.merge = make_merge(
            root, self._base, rule="average", keep_last=1, keep_within=0, marked_only=marked_only,
            quiet=pace.quiet, quiet_unsure=pace.quiet_unsure, limits=NO_LIMITS,
        )  # fmt: skip
        (root / "sources").mkdir()
        if self.other_user:
            give(root, NOBODY)

    @property
    def quiet(self) -> float:
        """How long a checkpoint must be quiet here: another user is not told who writes."""
        return self.pace.quiet_unsure if self.other_user else self.pace.quiet

    def prepare(self, style: str, number: int) -> Arrival:
        """Return an arrival whose source is complete."""
        name = f"{style.replace(' ', '-')}-{number}"
        source = self._save(name)
        if style == "replaced while folded":
            self._save(f"{name}-first")
        arrival = Arrival(
            style,
            STYLES[style],
            source,
            self.merge.watch / name,
            random.Random(self.chance.random()),
            self.pace.stall_up_to,
        )
        if style == "a copy that stalls" or style.startswith("zeros first"):
            arrival.stall_once = self.pace.stall_once
        if style == "replaced while folded":
            arrival.stall_once = self.quiet + 0.2
        return arrival

    def _save(self, name: str) -> Path:
        folder = save_sharded(self._root / "sources" / name, fine_tuned(self._base, self.chance.randrange(2**31)), 3)
        (folder / "config.json").write_text("{}")
        for path in folder.iterdir():
            path.chmod(0o644)
        return folder

    def run(self, arrivals: Sequence[Arrival], at_once: int) -> list[Judged]:
        """Let all arrive while a daemon runs, so many at a time; returns how each ended."""
        with self.merge.running("run") as daemon, ThreadPoolExecutor(at_once) as pool:
            eventually(lambda: (self.merge.state / "control.sock").exists())
            list(pool.map(Arrival.arrive, arrivals))
            until = time.time() + self.quiet + self.pace.grace
            while time.time() < until and not self._settled(arrivals):
                time.sleep(0.2)
            assert daemon.runs, daemon.err
            assert "Traceback" not in daemon.err, daemon.err
        rows = self.merge.checkpoints()
        return [self._judge(arrival, [r for r in rows if r.place == str(arrival.place)]) for arrival in arrivals]

    def _settled(self, arrivals: Iterable[Arrival]) -> bool:
        """Whether all came to an end, a while after the last of them was complete."""
        newest = {row.place: row for row in self.merge.checkpoints()}
        rows = [newest.get(str(arrival.place)) for arrival in arrivals]
        since = time.time() - max(arrival.completed for arrival in arrivals)
        return since > SEEN_WITHIN and all(row is not None and row.state in ENDED for row in rows)

    def _judge(self, arrival: Arrival, rows: Sequence[Checkpoint]) -> Judged:
        first = arrival.source.with_name(f"{arrival.source.name}-first")
        complete = {digest_of(folder) for folder in (arrival.source, first) if folder.exists()}
        early = [row for row in rows if row.digest is not None and row.digest not in complete]
        last = rows[-1] if rows else None
        seconds = ended_at(last) - arrival.completed if last else float("inf")
        return Judged(arrival, len(early), seconds, last.state if last else "never seen")


def late(judged: Iterable[Judged], quiet: float, grace: float) -> list[Judged]:
    """Return those that were not folded in time; one that was replaced may wait for a person instead."""
    return [
        j for j in judged
        if j.seconds > quiet + grace or not (j.state == "folded" or j.arrival.style.startswith("replaced"))
    ]  # fmt: skip


def table(judged: Sequence[Judged], quiet: float, grace: float) -> list[str]:
    """Return a line for each style: how many arrived, were folded early, were late, and how long the slowest took."""
    lines = ["| style | arrived | early | late | slowest, s |", "|---|---|---|---|---|"]
    for style in Counter(j.arrival.style for j in judged):
        mine = [j for j in judged if j.arrival.style == style]
        early, slow = sum(j.early for j in mine), max(j.seconds for j in mine)
        lines.append(f"| {style} | {len(mine)} | {early} | {len(late(mine, quiet, grace))} | {slow:.1f} |")
    return lines


def ended_at(row: Checkpoint) -> float:
    """Return when a row reached its end, in wall-clock seconds; in the far future if it did not."""
    return datetime.fromisoformat(row.since).timestamp() if row.state in ENDED else float("inf")


def digest_of(folder: Path) -> str:
    """Return the digest of a complete checkpoint."""
    sighting = Directory(folder.parent).sight(folder)
    assert sighting is not None
    candidate = Candidate(str(folder), folder.name, read_contents(folder), {}, sighting.stamps)
    return content_digest(candidate, 10**8, Progress())


def small_base() -> Model:
    """Return a base model of a megabyte, in a few weights."""
    generator = torch.Generator().manual_seed(0)
    return {f"layer.{k}.weight": torch.randn((256, 256), generator=generator) for k in range(4)}


def give(root: Path, owner: int) -> None:
    """Give a merge's state to another user, who may read the rest but for what a test keeps from it."""
    for path in (root / "state", *(root / "state").rglob("*")):
        shutil.chown(path, owner, owner)
    for path in (root, *root.rglob("*")):
        if not path.is_relative_to(root / "state"):
            path.chmod(0o755 if path.is_dir() else 0o644)
