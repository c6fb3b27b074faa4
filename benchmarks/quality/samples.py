"""What the page needs of all results, small enough to lie beside it: docs/quality.json, a line for each method on a draw."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from statistics import fmean
from typing import Any

from quality.recipe import TUNING_SEEDS
from quality.records import Result

DIGITS = 2  # of a percentage; a test item is half a percent or more of its task
INDIVIDUAL, ZERO_SHOT = "individual", "zero-shot"  # the references between which all merged models lie
ENDS = (INDIVIDUAL, ZERO_SHOT)
POISON = "+"  # in a set's name, before what was put into its stream; such a stream is looked at in its end alone
GRID, BEST = "plain-sum-", "plain-sum-best"  # a constant each, of which the set's best is kept: chosen in hindsight


@dataclass(frozen=True)
class Sample:
    """What one method got on one draw of a set."""

    final: float
    worst: float
    backward: float | None
    unseen: float | None
    distance: float
    seconds: float | None  # a fold
    state: float | None  # what a version keeps besides its model, in models
    curve: tuple[float, ...]  # after each fold, on the tasks so far; empty of what is made of all at once
    out: tuple[str, ...]  # what was held or refused, with the reasons

    @classmethod
    def of(cls, result: Result) -> "Sample":
        """Return what is kept of a result, rounded; the cost is that of folding, not of what only fed a re-merge."""
        folded = bool(result.rule and result.curve)
        return cls(
            round(result.accuracy, DIGITS), round(result.worst, DIGITS),
            _rounded(result.backward_transfer if result.method not in ENDS else None), _rounded(result.on_unseen),
            round(result.distance, DIGITS + 2), _rounded(fmean(result.seconds), DIGITS + 1) if folded else None,
            _rounded(result.state_bytes / result.model_bytes) if folded else None,
            tuple(round(value, DIGITS) for value in result.so_far()),
            tuple(f"{out.checkpoint} {out.verdict}: {', '.join(out.reasons)}" for out in result.out),
        )  # fmt: skip


@dataclass(frozen=True)
class Measured:
    """All samples of one set, and its tasks by themselves."""

    kind: str
    tasks: int  # that are folded
    samples: Mapping[str, Mapping[str, Sample]]  # by method and draw
    alone: Mapping[str, Mapping[str, tuple[float, ...]]]  # by task and reference, a value of each draw
    constant: str | None = None  # that was the best of the grid

    @property
    def draws(self) -> list[str]:
        """The draws that any method has: TRAINING-ORDER."""
        return sorted({draw for samples in self.samples.values() for draw in samples})

    def values(self, method: str, figure: str = "final") -> dict[str, float]:
        """Return one figure of a method, by draw; without the draws that do not have it."""
        found = {draw: getattr(sample, figure) for draw, sample in self.samples.get(method, {}).items()}
        return {draw: value for draw, value in found.items() if value is not None}


@dataclass(frozen=True)
class Quality:
    """All that the page is made of."""

    sets: Mapping[str, Measured]
    methods: Mapping[str, str]  # what each is: mergd's rule with its parameters, if it is one

    @classmethod
    def of(cls, results: Iterable[Result]) -> "Quality":
        """Return what is kept of results; what was measured with the tuning seeds is not reported."""
        every = [one for one in results if not {one.training, one.order} & set(TUNING_SEEDS)]
        clean = [one for one in every if POISON not in one.set and not _of_grid(one.method)]
        names = sorted({result.set for result in every}, key=_natural)
        return cls(
            {name: _measured([result for result in every if result.set == name]) for name in names},
            {one.method: _what(one) for one in sorted(clean, key=lambda one: one.method)},
        )

    @classmethod
    def read(cls, path: Path) -> "Quality":
        """Return what a file keeps."""
        told = json.loads(path.read_text())
        return cls({name: _read(one) for name, one in told["sets"].items()}, told["methods"])

    def write(self, path: Path) -> None:
        """Write all into a file, a line for each method on a draw."""
        path.write_text("".join(self._lines()))

    def _lines(self) -> Iterator[str]:
        yield f'{{"figures": {_json([field.name for field in fields(Sample)])},\n'
        yield f'"methods": {json.dumps(self.methods, indent=1, ensure_ascii=False)},\n"sets": {{'
        for i, (name, one) in enumerate(self.sets.items()):
            yield f'{"," if i else ""}\n{_json(name)}: {{"kind": {_json(one.kind)}, "tasks": {one.tasks}, "constant": {_json(one.constant)},\n"samples": {{'
            rows = [(method, draw, row) for method, by in one.samples.items() for draw, row in by.items()]
            yield ",".join(f"\n{_json(f'{method} {draw}')}: {_json(astuple(row))}" for method, draw, row in rows)
            yield '},\n"alone": {' + ",".join(f"\n{_json(task)}: {_json(by)}" for task, by in one.alone.items()) + "}}"
        yield "}}\n"


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def _read(told: Mapping[str, Any]) -> Measured:
    samples: dict[str, dict[str, Sample]] = {}
    for name, row in told["samples"].items():
        method, draw = name.split()
        figures: list[Any] = [tuple(figure) if isinstance(figure, list) else figure for figure in row]
        samples.setdefault(method, {})[draw] = Sample(*figures)
    alone = {task: {name: tuple(values) for name, values in by.items()} for task, by in told["alone"].items()}
    return Measured(told["kind"], told["tasks"], samples, alone, told["constant"])


def _measured(results: list[Result]) -> Measured:
    samples: dict[str, dict[str, Sample]] = {}
    for result in sorted(results, key=lambda result: (result.method, result.training, result.order)):
        samples.setdefault(result.method, {})[f"{result.training}-{result.order}"] = Sample.of(result)
    grid = {method: by for method, by in samples.items() if _of_grid(method)}
    shared = set.intersection(*(set(by) for by in grid.values())) if grid else set()
    means = {method: fmean(by[draw].final for draw in shared) for method, by in grid.items() if shared}
    best = max(means, key=means.__getitem__, default=None)
    kept = {BEST if method == best else method: by for method, by in samples.items() if method not in {*grid} - {best}}
    return Measured(results[0].kind, len(results[0].final), kept, _alone(results), best and best.removeprefix(GRID))


def _alone(results: list[Result]) -> dict[str, dict[str, tuple[float, ...]]]:
    found: dict[str, dict[str, tuple[float, ...]]] = {}
    for result in results:
        scores = {**result.final, **result.unseen} if result.method in ENDS else {}
        for task, score in sorted(scores.items(), key=lambda item: _natural(item[0])):
            by = found.setdefault(task, {})
            by[result.method] = (*by.get(result.method, ()), round(score, DIGITS))
    return found


def _of_grid(method: str) -> bool:
    return method.startswith(GRID)


def _what(result: Result) -> str:
    if not result.rule:
        return "a reference"
    if not result.curve:
        return "a re-merge, at its defaults"
    parameters = ", ".join(f"{name} = {value}" for name, value in result.parameters.items())
    return f"`{result.rule}`" + (f": {parameters}" if parameters else "")


def _natural(name: str) -> list[str]:
    """Return what sorts vision-8 before vision-20."""
    return [part.zfill(9) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def _rounded(value: float | None, digits: int = DIGITS) -> float | None:
    return None if value is None else round(value, digits)
