"""kill -9 at moments of chance while checkpoints come from a Hub, are folded, and versions are pushed to it.

Whatever is killed, each checkpoint is folded once, each version pushed once, in order, and nothing is left in the spool.
python -m journeys.hub_kills --count 50 --seed 1 (in tests/, or `make hub-kills`).
"""

import argparse
import random
import signal
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import torch
from fakehub import FakeHub
from support.commands import eventually, start_forking
from support.hub import HubMerge
from support.pushing import history, pushing_merge, tags

EACH = 2  # checkpoints that come in each life
LIFE = 1.5  # seconds that a daemon lives, at most; by then it has usually done all that there is


@dataclass
class Report:
    """What a run saw."""

    during: Counter[str] = field(default_factory=Counter)  # what was under way when it was killed
    checkpoints: int = 0
    wrong: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"kills: {self.during.total()}, {dict(self.during.most_common())}", f"checkpoints: {self.checkpoints}"]
        return "\n".join([*lines, f"wrong: {len(self.wrong)}", *self.wrong])


def under_way(merge: HubMerge) -> str:
    """Return what a daemon that was just killed was about, by what it left."""
    if any(merge.store.drafts.iterdir()):
        return "fold"
    asked = [str(request) for request in merge.hub.requests[-1:]]
    if any("/org/merged" in one or "lfs" in one for one in asked):
        return "push"
    return "download" if merge.spooled() else "idle or listing"


def kill(count: int, seed: int) -> Report:
    """Kill a daemon so many times, and let the last one finish."""
    chance, report = random.Random(seed), Report()
    model = {f"layer.{k}.weight": torch.randn(256, 256) for k in range(6)}
    with tempfile.TemporaryDirectory() as folder, FakeHub() as hub:
        merge = pushing_merge(Path(folder), hub, model=model, rule="average", keep_last=1000)
        for life in range(count):
            for k in range(EACH):
                merge.push(f"c{life:03d}-{k}", EACH * life + k)
            with merge.running("run") as daemon:
                eventually(lambda daemon=daemon: "watching" in daemon.err)  # type: ignore[misc]
                time.sleep(chance.uniform(0, LIFE))
                daemon.send(signal.SIGKILL)
                daemon.ended()
            report.during[under_way(merge)] += 1
        report.checkpoints = EACH * count
        for row in merge.checkpoints():  # what was killed in three folds waits for a person
            if row.state == "held":
                assert merge.mergd("approve", row.name).code == 0
        with merge.running("run") as daemon:
            eventually(lambda: (merge.status().get("pushed") or {}).get("version") == report.checkpoints, 300)
            daemon.send(signal.SIGTERM)
            daemon.ended()
        report.wrong = list(_wrong(merge, report.checkpoints))
    return report


def _wrong(merge: HubMerge, count: int) -> list[str]:
    versions, found = merge.versions(), []
    folded = Counter(version.checkpoint for version in versions)
    if len(versions) != count or max(folded.values()) > 1:
        found.append(f"{len(versions)} versions of {count} checkpoints, {folded.most_common(1)}")
    names = {row.id: row.name for row in merge.checkpoints()}
    told = [f"v{version.number}: folded {names[version.checkpoint or 0]}" for version in versions]
    if history(merge.hub) != told:
        found.append(f"pushed were {history(merge.hub)}, and not {told}")
    if tags(merge.hub) != {title.partition(":")[0]: title for title in told}:
        found.append(f"the tags are {tags(merge.hub)}")
    if merge.spooled():
        found.append(f"in the spool is {merge.spooled()}")
    return found


def main() -> None:
    """Run it from the command line; exit 1 if anything was wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    start_forking()
    report = kill(options.count, options.seed)
    print(report)
    raise SystemExit(bool(report.wrong))


if __name__ == "__main__":
    main()
