"""Measures one method on one draw of a set: how well the merged model does its tasks after each fold, and what it cost."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from safetensors.torch import load_file

from .folding import Arriving, Stream, streamed
from .kinds import Weights
from .methods import Method
from .poison import SOURCES, with_poison
from .recipe import Draw, Set
from .records import Result, Scores, path_of, read, write
from .reference import Given, steps
from .sets import arrival, kind_of
from .training import BASE, LORA, Trained, recipe_key

WITH_POISON = ("opcm-block", "average", "ties", "tsvm", "gram")  # the methods that are tried with a bad checkpoint


@dataclass(frozen=True)
class Places:
    """Where things lie."""

    where: Path  # what is kept: models and results
    work: Path  # streams, while they are measured
    peers: Path  # environments with other packages

    @property
    def results(self) -> Path:
        """The results' folder."""
        return self.where / "results"


@dataclass(frozen=True)
class Job:
    """What is to be measured."""

    places: Places
    set: Set
    draw: Draw
    method: Method
    most: int | None  # test items of each task that are looked at after each fold; None: all

    @property
    def path(self) -> Path:
        """Where the result will lie."""
        return path_of(self.places.results, self.set.name, self.draw.training, self.draw.order, self.method.name)

    @property
    def key(self) -> str:
        """The digest of what the result comes from."""
        said = [asdict(self.method), self.set.tasks, self.set.unseen, self.set.adapters, self.most, self.set.name]
        told = hashlib.sha256(f"{recipe_key(self.set.kind)} {json.dumps(said)}".encode())
        for path in (*self.method.sources, *(SOURCES if self.set.poison else ())):
            told.update(path.read_bytes())
        return told.hexdigest()[:12]

    @property
    def is_done(self) -> bool:
        """Whether the result is there."""
        return self.path.exists() and read(self.path).key == self.key

    @property
    def fits(self) -> bool:
        """Whether the method can merge such checkpoints, and is looked at with bad ones."""
        if self.set.poison:
            return self.method.name in WITH_POISON
        return not (self.method.needs_fisher and self.set.adapters)


def measure(job: Job) -> Path:
    """Measure, and write the result."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    measuring = Measuring(job)
    if job.method.reference in ("zero-shot", "individual"):
        return write(job.places.results, measuring.of_own())
    if job.method.reference:
        return write(job.places.results, measuring.of_reference())
    return write(job.places.results, measuring.of_mergd())


class Measuring:
    """The models of one draw, and what is found of them."""

    def __init__(self, job: Job) -> None:
        self.job, self.kind = job, kind_of(job.set.kind)
        self.trained = Trained(job.places.where, job.set.kind, job.draw.training)
        self.tasks = arrival(job.set.tasks, job.draw)
        self.suffix = LORA * job.set.adapters
        self.base = self.trained.weights(BASE)

    def tuned(self, task: str) -> Weights:
        """Return a task's own fine-tune, whole."""
        return self.trained.weights(task + self.suffix)

    def accuracy(self, weights: Weights, task: str, most: int | None) -> float:
        """Return the percentage of its test items that are right."""
        return self.kind.accuracy(self.base, weights, task, self.job.draw.training, most)

    # ------------------------------------------------------------------------------------------------ the three ways

    def of_own(self) -> Result:
        """Measure the base, or each task's own fine-tune."""
        zero_shot = self.job.method.reference == "zero-shot"
        final, first, most = {}, [], self.job.most
        for task in self.tasks:
            weights = self.base if zero_shot else self.tuned(task)
            final[task] = self.accuracy(weights, task, None)
            first.append(self.accuracy(weights, task, most) if most else final[task])
        unseen = {task: self.accuracy(self.base, task, None) for task in self.job.set.unseen if zero_shot}
        rows = tuple(tuple(first[:count]) for count in range(1, len(first) + 1))
        return self.result(final, unseen, rows, distance=float(zero_shot))

    def of_reference(self) -> Result:
        """Measure what is merged without mergd."""
        method, places = self.job.method, self.job.places
        whole = [self.trained.whole(task + self.suffix) for task in self.tasks]
        given = Given(
            self.job.set.kind,
            self.base,
            [load_file(w / "model.safetensors") for w in whole],
            self.trained.place(BASE),
            whole,
        )
        merged = steps(method.reference, given, method.parameters, places.peers, places.work)
        return self.measured(merged, each=method.reference != "plain-sum")

    def of_mergd(self) -> Result:
        """Measure a stream through mergd."""
        method = self.job.method
        arriving = [Arriving(task, self.trained.place(task + self.suffix)) for task in self.tasks]
        work, base, one = self.job.places.work, self.trained.place(BASE), self.job.set
        with (
            with_poison(work, one, self.trained, arriving) as (all_arriving, guarding),
            streamed(
                work, base, all_arriving, method.rule, method.parameters, remerge=method.remerge, **guarding
            ) as stream,
        ):
            if stream.out and not one.guard:
                raise RuntimeError(f"not all were folded: {stream.out}")
            if stream.remerged or one.poison:
                return self.measured(_read([stream.remerged or stream.last]), stream, each=False)
            return self.measured(_read(stream.models.values()), stream, each=True)

    # -------------------------------------------------------------------------------------------------- what is found

    def measured(self, models: Iterable[Weights], stream: Stream | None = None, *, each: bool) -> Result:
        """Return what is found of the last of the models, and of each if they are those after each fold."""
        rows: list[tuple[float, ...]] = []
        last: Weights = {}
        for count, last in enumerate(models, 1):
            if each:
                rows.append(tuple(self.accuracy(last, task, self.job.most) for task in self.tasks[:count]))
        reused = each and self.job.most is None
        final = rows[-1] if reused else [self.accuracy(last, task, None) for task in self.tasks]
        unseen = {task: self.accuracy(last, task, None) for task in self.job.set.unseen}
        return self.result(dict(zip(self.tasks, final, strict=True)), unseen, tuple(rows), self.distance(last), stream)

    def distance(self, merged: Weights) -> float:
        """Return the mean over tasks of ||merged - tuned|| / ||tuned - base||."""
        each = []
        for task in self.tasks:
            tuned = self.tuned(task)
            each.append(_apart(merged, tuned) / _apart(tuned, self.base))
        return fmean(each)

    def result(
        self, final: Scores, unseen: Scores, curve: tuple[tuple[float, ...], ...], distance: float,
        stream: Stream | None = None,
    ) -> Result:  # fmt: skip
        """Return the record."""
        job = self.job
        parameters: Mapping[str, Any] = {**(stream.parameters if stream else {}), **job.method.parameters}
        costs: dict[str, Any] = {}
        if stream:
            costs = {"seconds": stream.seconds, "state_bytes": stream.state_bytes, "model_bytes": stream.model_bytes}
            costs["out"] = stream.out
        return Result(
            job.set.name, job.set.kind, job.draw.training, job.draw.order, job.method.name, job.method.rule,
            dict(parameters), job.key, self.tasks, final, unseen, curve, job.most, distance, **costs,
        )  # fmt: skip


def _read(models: Iterable[Path]) -> Iterator[Weights]:
    for folder in models:
        yield load_file(folder / "model.safetensors")


def _apart(a: Weights, b: Weights) -> float:
    """Return the norm of the difference."""
    return float(torch.stack([(a[name].double() - w.double()).norm() for name, w in b.items()]).norm())
