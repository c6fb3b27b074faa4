"""What was measured of one method on one draw of a set: a JSON file each, .quality/results/SET/TRAINING-ORDER/METHOD.json."""

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

Scores = dict[str, float]  # accuracy in percent, by task


@dataclass(frozen=True)
class Verdict:
    """A checkpoint that is not in the model in the end."""

    checkpoint: str
    verdict: str  # held or refused
    reasons: tuple[str, ...]  # such as norm-share


@dataclass(frozen=True)
class Result:
    """All figures are of the tasks that were folded, but for `unseen`. Of a rule for a re-merge only, `curve` is empty."""

    set: str  # with its poison, if any: vision-8 or vision-8+noise
    kind: str
    training: int
    order: int
    method: str  # its name in methods.py
    rule: str  # mergd's fold rule; empty of a reference, which knows nothing of mergd
    parameters: dict[str, Any]
    key: str  # the digest of all that it came from: a result with another one is measured anew
    tasks: tuple[str, ...]  # in the order of arrival
    final: Scores  # of the last version, on all test items
    unseen: Scores  # of the last version, on tasks that were never folded
    curve: tuple[tuple[float, ...], ...]  # after each fold, on the first `most` test items of each task so far
    most: int | None
    distance: float  # from the individual models: the mean of ||merged - tuned|| / ||tuned - base||
    seconds: tuple[float, ...] = ()  # wall seconds of each fold; empty of most references
    state_bytes: int = 0  # what one version keeps besides its model
    model_bytes: int = 0
    out: tuple[Verdict, ...] = field(default=())  # checkpoints that were held or refused

    @property
    def accuracy(self) -> float:
        """The mean of all tasks after the last fold."""
        return fmean(self.final.values())

    @property
    def worst(self) -> float:
        """The accuracy on the task that came off worst."""
        return min(self.final.values())

    @property
    def on_unseen(self) -> float | None:
        """The mean of the tasks that were never folded."""
        return fmean(self.unseen.values()) if self.unseen else None

    @property
    def backward_transfer(self) -> float | None:
        """1 / (T - 1) sum over all but the last of a_i(final) - a_i(when folded), on the same test items."""
        if len(self.curve) < 2:
            return None
        return fmean(self.curve[-1][i] - self.curve[i][i] for i in range(len(self.curve) - 1))

    def so_far(self) -> tuple[float, ...]:
        """Return, after each fold, the mean of the tasks so far."""
        return tuple(fmean(row) for row in self.curve)


def path_of(results: Path, set_name: str, training: int, order: int, method: str) -> Path:
    """Return where a result lies."""
    return results / set_name / f"{training}-{order}" / f"{method}.json"


def write(results: Path, result: Result) -> Path:
    """Write a result at its place, whole or not at all."""
    path = path_of(results, result.set, result.training, result.order, result.method)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(f".{os.getpid()}")
    aside.write_text(json.dumps(asdict(result), indent=1) + "\n")
    aside.replace(path)
    return path


def read(path: Path) -> Result:
    """Return the result in a file."""
    told = json.loads(path.read_text())
    told["tasks"], told["seconds"] = tuple(told["tasks"]), tuple(told["seconds"])
    told["curve"] = tuple(tuple(row) for row in told["curve"])
    told["out"] = tuple(Verdict(o["checkpoint"], o["verdict"], tuple(o["reasons"])) for o in told["out"])
    return Result(**told)


def read_all(results: Path) -> Iterator[Result]:
    """Yield all results that are there, sorted by their places."""
    for path in sorted(results.glob("*/*/*.json")):
        yield read(path)
