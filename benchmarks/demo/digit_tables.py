"""What the terminal shows: one seed in detail, the others in a line each, and the final table."""

from collections.abc import Sequence
from statistics import fmean

from digit_figures import METHODS, final_figures, leads
from digit_trials import Trial
from rich.console import Console
from rich.table import Table


def show_step(console: Console, trial: Trial) -> None:
    """Show what the last fold, or the roll back, did to each task."""
    console.print(_rolled_back(trial) if trial.rolled_back else _folded(trial))


def show_summary(console: Console, trial: Trial, seconds: float) -> None:
    """Show one seed in a line."""
    scores = ", ".join(f"{METHODS[method]} {trial.final(method):.1f}" for method in METHODS)
    back = "restored exactly" if trial.restored else "[red]NOT restored[/red]"
    console.print(f"Seed {trial.seed}: {scores}; roll back: {back} ({seconds:.0f} s)", highlight=False, soft_wrap=True)


def show_final(console: Console, trials: Sequence[Trial]) -> None:
    """Show mean and spread over the seeds, and the paired difference."""
    seeds = ", ".join(str(trial.seed) for trial in trials)
    table = Table(title=f"All {len(trials[0].tasks)} tasks; seeds {seeds}", title_justify="left")
    table.add_column("model")
    table.add_column("accuracy, %: mean ± spread", justify="right")
    for method, value in final_figures(trials).items():
        table.add_row(METHODS[method], str(value), style="bold" if method == "mergd" else "")
    console.print(table)
    lead = leads(trials)
    console.print(
        f"mergd leads plain averaging by {fmean(lead):+.1f} points (mean), {min(lead):+.1f} on the worst seed."
    )


def _table(title: str, *methods: str) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("task")
    for method in methods:
        table.add_column(method, justify="right", style="bold" if method == METHODS["mergd"] else "")
    return table


def _folded(trial: Trial) -> Table:
    count, fold = len(trial.folds), trial.folds[-1]
    table = _table(f"Dropped {trial.tasks[count - 1]}: version {fold.version}", *METHODS.values())
    columns = (trial.base, fold.average, fold.mergd, trial.individual)
    for name, *scores in list(zip(trial.tasks, *columns, strict=True))[:count]:
        table.add_row(name, *(f"{score:.1f}" for score in scores))
    table.add_section()
    table.add_row("mean", *(f"{trial.so_far()[method][-1]:.1f}" for method in METHODS))
    return table


def _rolled_back(trial: Trial) -> Table:
    last, earlier, now = trial.folds[-1], trial.folds[-2], trial.rolled_back
    assert now is not None
    titles = (f"version {last.version}", f"version {earlier.version} when it was new", "after the roll back")
    table = _table(f"Rolled back from version {last.version} to {now.version}", *titles)
    for name, *scores in zip(trial.tasks, last.mergd, earlier.mergd, now.mergd, strict=True):
        table.add_row(name, *(f"{score:.1f}" for score in scores))
    table.caption = "The earlier accuracies again, exactly." if trial.restored else "NOT the earlier accuracies."
    return table
