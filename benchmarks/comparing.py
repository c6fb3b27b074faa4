"""Rounds of contenders by turns, and the ratios between them with their spread."""

import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

from commands import Cost
from models import clip_config, llama_config

Samples = dict[str, list[dict[str, float]]]  # by name, what each round measured
Contender = Callable[[], Mapping[str, Cost]]
Part = Mapping[str, Any]  # what one comparison found: its samples, and facts that need no rounds


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    rounds: int
    gb: float  # of the model that is held against the machine's limits
    counts: tuple[int, ...]  # of checkpoints, beside mergekit
    clip: Mapping[str, Any]
    llama: Mapping[str, Any]
    backlog: int  # checkpoints that arrive at once
    # Rules and sides of square matrices: small ones, and some that are decomposed ahead.
    squares: tuple[tuple[str, int], ...] = (("average", 256), ("opcm", 256), ("opcm", 1024))
    all_variants: bool = True  # fusion-bench with one thread too, and mergd's variant that is fusion-bench's


FULL = Sizes(3, 2.0, (2, 8, 32), clip_config(), llama_config(512, 1408, 8, 16_000), backlog=20)
QUICK = Sizes(
    1, 0.001, (2,), clip_config(64, 1, 64), llama_config(64, 128, 1, 300), 4, (("average", 64), ("opcm", 64)), False
)


def interleaved(rounds: int, *contenders: Contender) -> Samples:
    """Let the contenders run by turns, so that what else the machine does falls on all alike."""
    samples: Samples = {}
    for number in range(1, rounds + 1):
        for contender in contenders:
            for name, cost in contender().items():
                samples.setdefault(name, []).append(asdict(cost))
                told = f"{cost.cpu:.2f} s CPU, {cost.wall:.2f} s, {cost.rss:.0f} MB"
                print(f"  round {number}: {name}: {told}", file=sys.stderr, flush=True)
    return samples


@dataclass(frozen=True)
class Spread:
    """The median, the least and the most of some rounds."""

    middle: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Return the spread of some values."""
        return cls(median(values), min(values), max(values))

    def __str__(self) -> str:
        spread = f" ({figure(self.least)} to {figure(self.most)})" if self.least != self.most else ""
        return figure(self.middle) + spread


def figure(value: float) -> str:
    """Return a number with three digits that count."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def values(part: Part, name: str, key: str) -> Spread:
    """Return the spread of one sample."""
    return Spread.of([sample[key] for sample in part["samples"][name]])


def ratio(part: Part, of: str, to: str, key: str = "cpu") -> Spread:
    """Return how many times as much one sample is as another, round by round."""
    pairs = zip(part["samples"][of], part["samples"][to], strict=True)
    return Spread.of([more[key] / less[key] for more, less in pairs])


@dataclass(frozen=True)
class Promise:
    """A figure to reach, and what was got."""

    what: str
    target: str
    got: Spread
    kept: bool


def at_least(what: str, times: float, got: Spread) -> Promise:
    """Return the promise that something is so many times as good, or better."""
    return Promise(what, f"at least {times:g}", got, got.middle >= times)


def at_most(what: str, limit: float, got: Spread) -> Promise:
    """Return the promise that something is no more."""
    return Promise(what, f"at most {limit:g}", got, got.middle <= limit)


def table(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a table."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)


def machine() -> dict[str, Any]:
    """Return what this was measured on."""
    names = [line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    versions = {name: version(name) for name in ("torch", "safetensors", "numpy")}
    return {
        "processor": names[0] if names else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory": f"{memory / 1e9:.0f} GB",
        "kernel": f"{platform.system()} {platform.release()}",
        "versions": versions | {"python": platform.python_version()},
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }


def _lines(path: str) -> Iterator[str]:
    yield from Path(path).read_text().splitlines()
