"""One seed from beginning to end: train, start the daemon, drop the checkpoints one by one, evaluate, roll back."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

from digit_folders import plain_average, read_weights, with_weights, write_folder
from digit_tasks import VIEWS, Digits, arrival_order, split_digits
from digit_training import Encoder, accuracy, fine_tune, one_shot_prototypes, train_base
from running import Daemon
from torch import Tensor

Scores = tuple[float, ...]  # accuracy in percent on each task, in the order of arrival


@dataclass(frozen=True)
class Task:
    """One view of the digits, and its frozen prototypes, one a class."""

    name: str
    digits: Digits
    prototypes: Tensor


@dataclass(frozen=True)
class Fold:
    """What was true on all tasks, those to come among them, once a checkpoint was folded."""

    version: int
    mergd: Scores
    average: Scores


@dataclass(frozen=True)
class Trial:
    """One seed's result, so far."""

    seed: int
    tasks: tuple[str, ...]  # in the order of arrival
    base: Scores
    individual: Scores  # each task's own fine-tune on that task
    folds: tuple[Fold, ...] = ()
    rolled_back: Fold | None = None  # what was true after the roll back by one version

    @property
    def restored(self) -> bool:
        """Whether the roll back brought the earlier accuracies again, exactly."""
        return self.rolled_back is not None and self.rolled_back == self.folds[-2]

    def so_far(self) -> dict[str, list[float]]:
        """Return, for each method, the mean accuracy on the tasks so far after each fold."""
        counts = range(1, len(self.folds) + 1)
        return {
            "individual": [fmean(self.individual[:n]) for n in counts],
            "mergd": [fmean(fold.mergd[:n]) for n, fold in enumerate(self.folds, 1)],
            "average": [fmean(fold.average[:n]) for n, fold in enumerate(self.folds, 1)],
            "base": [fmean(self.base[:n]) for n in counts],
        }

    def final(self, method: str) -> float:
        """Return a method's mean accuracy on all tasks after the last fold."""
        return self.so_far()[method][-1]


def run_trial(seed: int, folder: Path, watch: Callable[[Trial], None]) -> Trial:
    """Run one seed in `folder`, and tell `watch` after each fold and after the roll back."""
    digits = split_digits(seed)
    base = train_base(digits, seed)
    base_folder = write_folder(base, folder / "base")
    daemon = Daemon(folder)
    daemon.init(base_folder)
    with daemon.running():  # it starts while the fine-tunes are trained
        tasks = _tasks(base, digits, seed)
        tuned = [fine_tune(base, task.digits, task.prototypes, seed) for task in tasks]
        checkpoints = [write_folder(t, folder / "trained" / task.name) for t, task in zip(tuned, tasks, strict=True)]
        individual = tuple(accuracy(t, task.digits, task.prototypes) for t, task in zip(tuned, tasks, strict=True))
        trial = Trial(seed, arrival_order(seed), _scores(base, tasks), individual)
        return _stream(trial, tasks, daemon, base_folder, checkpoints, watch)


def _stream(
    trial: Trial, tasks: list[Task], daemon: Daemon, base: Path, checkpoints: list[Path], watch: Callable[[Trial], None]
) -> Trial:
    for count, checkpoint in enumerate(checkpoints, 1):
        published = daemon.drop(checkpoint)
        average = _scores(with_weights(plain_average(base, checkpoints[:count])), tasks)
        merged = _scores(with_weights(read_weights(published.folder)), tasks)
        trial = replace(trial, folds=(*trial.folds, Fold(published.version, merged, average)))
        watch(trial)
    earlier = trial.folds[-2]
    published = daemon.roll_back(earlier.version)
    merged = _scores(with_weights(read_weights(published.folder)), tasks)
    trial = replace(trial, rolled_back=replace(earlier, version=published.version, mergd=merged))
    watch(trial)
    return trial


def _tasks(base: Encoder, digits: Digits, seed: int) -> list[Task]:
    views = {name: digits.seen(VIEWS[name]) for name in arrival_order(seed)}
    return [Task(name, seen, one_shot_prototypes(base, seen, seed)) for name, seen in views.items()]


def _scores(encoder: Encoder, tasks: list[Task]) -> Scores:
    return tuple(accuracy(encoder, task.digits, task.prototypes) for task in tasks)
