"""The figures over all seeds: mean and spread of each method, paired differences, and the verdict."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from digit_trials import Trial

METHODS = {
    "base": "base model",
    "average": "plain average",
    "mergd": "mergd (OPCM)",
    "individual": "individual models",
}


@dataclass(frozen=True)
class Figure:
    """A mean over the seeds, and its standard deviation over them (0 for one seed)."""

    mean: float
    spread: float

    def __str__(self) -> str:
        return f"{self.mean:.1f} ± {self.spread:.1f}"


def figure(values: Sequence[float]) -> Figure:
    """Return the mean and spread of one value per seed."""
    return Figure(fmean(values), stdev(values) if len(values) > 1 else 0.0)


def final_figures(trials: Sequence[Trial]) -> dict[str, Figure]:
    """Return each method's accuracy on all tasks after the last fold."""
    return {method: figure([trial.final(method) for trial in trials]) for method in METHODS}


def figures_by_fold(trials: Sequence[Trial], method: str) -> list[Figure]:
    """Return a method's accuracy on the tasks so far, after each fold."""
    return [figure(values) for values in zip(*(trial.so_far()[method] for trial in trials), strict=True)]


def leads(trials: Sequence[Trial]) -> list[float]:
    """Return, for each seed, by how many points mergd leads plain averaging."""
    return [trial.final("mergd") - trial.final("average") for trial in trials]


def complaints(trials: Sequence[Trial]) -> list[str]:
    """Return a sentence for each promise that was broken."""
    broken = []
    if (lead := fmean(leads(trials))) <= 0:
        broken.append(f"mergd does not beat plain averaging: the mean difference is {lead:+.1f} points.")
    if seeds := [str(trial.seed) for trial in trials if not trial.restored]:
        broken.append(f"The roll back did not restore the accuracies exactly for seed {', '.join(seeds)}.")
    return broken
