"""Transfer: what gates measured along a line of versions, and how much of what each checkpoint brought is still there."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..plugins.gates.tolerance import comparable, loss
from ..state.history import History
from ..state.records import Metric, Metrics, Version


@dataclass(frozen=True)
class Stop:
    """A version on the way to another one, or the base model, and what one gate measured of it."""

    version: int  # 0: the base model
    brought: str  # the name of the checkpoint that it folded; empty if none
    metrics: Metrics


@dataclass(frozen=True)
class Row:
    """One metric at the stops that tell how it went."""

    name: str
    base: Metric | None
    since: int | None  # the version that brought it; None if that is the last one itself, or none did
    then: Metric | None  # what it was there
    now: Metric

    @property
    def gained(self) -> float | None:
        """How much better it is than when it was brought; below 0 if something was forgotten."""
        return -loss(self.now, self.then) if self.then is not None else None


def rows_of(line: Sequence[Stop]) -> list[Row]:
    """Return the metrics of the last stop. line: oldest first, without what was not measured."""
    base = next((stop.metrics for stop in line if stop.version == 0), {})
    return [_row(name, now, line, base.get(name)) for name, now in line[-1].metrics.items()]


def _row(name: str, now: Metric, line: Sequence[Stop], base: Metric | None) -> Row:
    there = [stop for stop in line[:-1] if stop.version and comparable(stop.metrics.get(name), now)]
    its_own = [stop for stop in line if stop.version and is_of(name, stop.brought)]
    since = next((stop for stop in there if not its_own or stop.version >= its_own[0].version), None)
    then = since.metrics[name] if since else None
    return Row(name, base if comparable(base, now) else None, since.version if since else None, then, now)


def is_of(metric: str, checkpoint: str) -> bool:
    """Whether a metric bears the name of a checkpoint: `mnist`, `mnist/accuracy` or `mnist.loss` of `team/mnist`."""
    name = checkpoint.rstrip("/").rpartition("/")[2].removesuffix(".safetensors")
    return bool(name) and (metric == name or metric.startswith((f"{name}/", f"{name}.", f"{name}:")))


def backward_transfer(rows: Sequence[Row]) -> float | None:
    """Return the mean of what was gained since each metric was brought, by the versions before the last; None if none was."""
    gained = [row.gained for row in rows if row.gained is not None]
    return sum(gained) / len(gained) if gained else None


def matrix(line: Sequence[Stop]) -> Mapping[str, Mapping[int, float]]:
    """Return each metric's value at each version: the task x version matrix; 0 is the base model."""
    names = dict.fromkeys(name for stop in line for name in stop.metrics)
    return {name: {s.version: s.metrics[name].value for s in line if name in s.metrics} for name in names}


# ----------------------------------------------------------------------------------------------- out of the history


def describe(history: History, version: Version) -> dict[str, Any]:
    """Return what each gate measured on the way to a version, by the gate's name: see docs/gates.md."""
    gates = history.evaluations.of(version.digest)
    if not gates:
        return {}
    line = history.lineage(version.number)[::-1]
    return {name: _described(_stops(history, line, found.identity)) for name, found in gates.items()}


def _stops(history: History, line: Sequence[Version], identity: str) -> list[Stop]:
    measured, get = history.evaluations.by(identity), history.checkpoints.get
    base = measured.get(str(history.pins("base_digest")["base_digest"]))
    there = [(version, measured[version.digest]) for version in line if version.digest in measured]
    names = {v.number: get(v.checkpoint).name for v, _ in there if v.checkpoint is not None}
    first = [Stop(0, "", base)] if base is not None else []
    return first + [Stop(version.number, names.get(version.number, ""), metrics) for version, metrics in there]


def _described(line: Sequence[Stop]) -> dict[str, Any]:
    rows = rows_of(line)
    return {
        "metrics": [asdict(row) | {"gained": row.gained} for row in rows],
        "backward_transfer": backward_transfer(rows),
        "matrix": matrix(line),
    }
