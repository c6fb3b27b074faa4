"""Whether a late fold costs what an early one did: many checkpoints of one base model through the real command line.

After each of some numbers of folds, a process of its own folds a few more; prints a line of JSON for each: what one of them
cost, the bytes that it read and wrote, and what the state takes on disk beside what its kept version needs.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from commands import Cost, Merge, work_folder
from models import make_model, parameters, remove

SPAN = 10  # folds that are measured together
LOT = 100  # checkpoints that lie on the disk at once
SHAPES = {"a.proj.weight": (512, 512), "b.proj.weight": (1024, 256), "a.proj.bias": (512,), "embed.weight": (4000, 256)}


def measure(work: Path, marks: Sequence[int]) -> Iterator[dict[str, Any]]:
    """Yield what folds cost that end at each mark."""
    merge = Merge(work / "merge", make_model(work / "base", 0, SHAPES))
    folded = 0
    for mark in marks:
        while mark - SPAN > folded:
            lot = min(LOT, mark - SPAN - folded)
            fold(merge, range(folded + 1, folded + lot + 1))
            folded += lot
        span = range(folded + 1, mark + 1)
        cost = fold(merge, span)
        folded = mark
        newest = merge.log()[0]
        yield {
            "folds": mark,
            "cpu": cost.cpu / len(span),
            "wall": cost.wall / len(span),
            "rss": cost.rss,
            "read": newest["bytes_read"],
            "written": newest["bytes_written"],
            "disk": merge.disk(),
            "version": 2 * 4 * parameters(SHAPES),  # what is published, and the slots
        }


def fold(merge: Merge, seeds: range) -> Cost:
    """Make checkpoints, fold them in one process, and delete them; returns what that process cost."""
    folders = [make_model(merge.work / f"fine-tune-{seed:05d}", seed, SHAPES) for seed in seeds]
    for folder in folders:
        merge.drop(folder)
    cost = merge.run_once(of=len(seeds))
    remove(*folders, *(merge.watch / folder.name for folder in folders))
    return cost


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folds", type=int, nargs="+", default=[SPAN, 10 * SPAN])
    folds = parser.parse_args().folds
    with work_folder() as work:
        for one in measure(work, folds):
            print(json.dumps({key: round(value, 3) for key, value in one.items()}), flush=True)


if __name__ == "__main__":
    main()
