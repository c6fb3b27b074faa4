"""The figures that Prometheus reads: each with its name, its kind, what it means, and where it is read from."""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric, SummaryMetricFamily
from prometheus_client.registry import Collector

from .. import __version__
from ..state.tallies import Tally
from .judging import Given

STATES = ("settling", "waiting", "blocked", "held", "refused", "folded")  # as the status counts checkpoints
MOST_CODES = 100  # other packages' gates may give any
CODE = re.compile(r"[a-z][a-z0-9-]{0,47}")
Read = Mapping[str, Any]  # by the value of the label; of a summary, how many and the sum


@dataclass(frozen=True)
class Facts:
    """All that the figures are read from, as the loop told it last."""

    found: Mapping[str, Any]  # the status
    tally: Tally = field(default_factory=Tally)
    oldest: Mapping[str, str] = field(default_factory=dict)  # since when something is in a state
    given: Given = field(default_factory=Given)
    started: float = 0.0  # Unix time
    turned: float = 0.0  # Unix time of the loop's last turn

    @property
    def undelivered(self) -> int:
        """What hooks were given up on, all of them together."""
        return sum(int(hook["undelivered"]) for hook in self.found["hooks"].values())

    def by_code(self, verdict: str) -> dict[str, int]:
        """Return how often a verdict was given, by code; what could be a name or a path is among the others."""
        counts: dict[str, int] = {}
        for (given, code), times in self.given.items():
            if given == verdict:
                known = code if CODE.fullmatch(code) and len(counts) < MOST_CODES else "other"
                counts[known] = counts.get(known, 0) + times
        return counts


@dataclass(frozen=True)
class Figure:
    """One metric. A label, besides `merge`, has values from a set that does not grow with what is folded."""

    name: str
    kind: str  # gauge, counter or summary
    meaning: str
    read: Callable[[Facts], Read]
    label: str = ""


def unix(text: str | None) -> float:
    """Return a time of the history in seconds since 1970; 0 if there is none."""
    return datetime.fromisoformat(text).timestamp() if text else 0.0


def one(read: Callable[[Facts], float]) -> Callable[[Facts], Read]:
    """Return the reading of a figure without a label."""
    return lambda facts: {"": read(facts)}


def _states(facts: Facts) -> Read:
    return {state: facts.found[state] for state in STATES}


def _oldest(facts: Facts) -> Read:
    return {state: unix(facts.oldest.get(state)) for state in ("ready", "held")}


FIGURES = (
    Figure("mergd_build_info", "gauge", "Always 1; the label has mergd's version.", lambda facts: {__version__: 1}, "version"),
    Figure("mergd_start_timestamp_seconds", "gauge", "When the daemon began, in Unix time.", one(lambda f: f.started)),
    Figure("mergd_last_turn_timestamp_seconds", "gauge", "When the daemon's loop turned last: it does at least once in a second or two.", one(lambda f: f.turned)),
    Figure("mergd_trouble", "gauge", "1 while something keeps the daemon from going on by itself: the status says what.", one(lambda f: bool(f.found["trouble"]))),
    Figure("mergd_paused", "gauge", "1 while folding is paused, by a person or because the head is damaged.", one(lambda f: f.found["paused"] is not None)),
    Figure("mergd_head_version", "gauge", "The number of the version that is published; 0 before the first.", one(lambda f: f.found["head"] or 0)),
    Figure("mergd_head_checkpoints", "gauge", "How many checkpoints are in the published model.", one(lambda f: (f.found["totals"] or {}).get("folded", 0))),
    Figure("mergd_versions_kept", "gauge", "Versions whose model is there, so that the head may move to them.", one(lambda f: f.found["versions"]["kept"])),
    Figure("mergd_folds_total", "counter", "Checkpoints that were folded, since init; also those of versions that were rolled away.", one(lambda f: f.tally.folds)),
    Figure("mergd_last_fold_timestamp_seconds", "gauge", "When the newest fold was drafted, in Unix time; 0 before the first.", one(lambda f: unix(f.tally.last_fold_at))),
    Figure("mergd_fold_seconds", "summary", "Seconds that folds took by step, since init; `wait` is from when the checkpoint was ready.", lambda f: f.tally.steps, "step"),
    Figure("mergd_bytes_read_total", "counter", "Bytes read to make versions, since init.", one(lambda f: f.tally.bytes_read)),
    Figure("mergd_bytes_written_total", "counter", "Bytes written to make versions, since init.", one(lambda f: f.tally.bytes_written)),
    Figure("mergd_checkpoints", "gauge", "Checkpoints by state; `waiting` is for a fold, or in one.", _states, "state"),
    Figure("mergd_oldest_timestamp_seconds", "gauge", "Since when the oldest checkpoint is `ready`, or `held`, in Unix time; 0 if none is.", _oldest, "state"),
    Figure("mergd_refusals_total", "counter", "Refusals by headers or gates, by code of each reason, since the daemon began.", lambda f: f.by_code("refused"), "code"),
    Figure("mergd_holds_total", "counter", "Checkpoints held for a person, by code of each reason, since the daemon began.", lambda f: f.by_code("held"), "code"),
    Figure("mergd_disk_used_bytes", "gauge", "What the state takes on disk.", one(lambda f: f.found["disk"]["used"])),
    Figure("mergd_disk_free_bytes", "gauge", "What is free on the state's file system.", one(lambda f: f.found["disk"]["free"])),
    Figure("mergd_hook_undelivered", "gauge", "Moves of the head, refusals and holds that a hook was not told of in time.", one(lambda f: f.undelivered)),
    Figure("mergd_push_last_timestamp_seconds", "gauge", "When a version was last pushed to the Hub, in Unix time; 0 if never.", one(lambda f: unix((f.found["pushed"] or {}).get("at")))),
    Figure("mergd_push_trouble", "gauge", "1 while what is to be pushed to the Hub cannot be: the status says why.", one(lambda f: bool((f.found.get("push") or {}).get("trouble")))),
)  # fmt: skip

FAMILIES: dict[str, Callable[..., Any]] = {
    "gauge": GaugeMetricFamily,
    "counter": CounterMetricFamily,
    "summary": SummaryMetricFamily,
}


class Figures(Collector):
    """Reads the figures of one merge, at each scrape, from the facts that are there."""

    def __init__(self, merge: str, look: Callable[[], Facts | None]) -> None:
        self._merge, self._look = merge, look
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def text(self) -> bytes:
        """Return the figures as Prometheus reads them."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """Yield each figure with its samples."""
        facts = self._look()
        for figure in FIGURES if facts is not None else ():
            assert facts is not None
            family = FAMILIES[figure.kind](figure.name, figure.meaning, labels=["merge", *filter(None, [figure.label])])
            for value, sample in figure.read(facts).items():
                numbers = sample if isinstance(sample, tuple) else (sample,)
                family.add_metric([self._merge, *([value] if figure.label else [])], *numbers)
            yield family
