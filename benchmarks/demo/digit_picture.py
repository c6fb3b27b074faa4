"""The picture: accuracy fold by fold over the seeds, and the final figures; the same bytes for the same figures."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib.style
from digit_figures import METHODS, Figure, figures_by_fold, final_figures
from digit_trials import Trial
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import MaxNLocator

COLOURS = {"base": "#777777", "average": "#D55E00", "mergd": "#0072B2", "individual": "#009E73"}
STYLE = {
    "svg.hashsalt": "mergd",  # ids in the file; random without it
    "font.family": "DejaVu Sans",  # the one that matplotlib brings along
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def save_picture(trials: Sequence[Trial], path: Path) -> None:
    """Write the picture as an SVG file."""
    with matplotlib.style.context(["default", STYLE]):
        canvas = Canvas(figsize=(9, 3.8), facecolor="white", layout="constrained")
        left, right = canvas.subplots(1, 2, width_ratios=(3, 2))
        _draw_folds(left, trials)
        _draw_final(right, trials)
        path.parent.mkdir(parents=True, exist_ok=True)
        canvas.savefig(path, format="svg", metadata={"Date": None, "Creator": None})


def _draw_folds(axes: Axes, trials: Sequence[Trial]) -> None:
    for method, name in METHODS.items():
        figures = figures_by_fold(trials, method)
        folds = range(1, len(figures) + 1)
        means = [figure.mean for figure in figures]
        width = 2.5 if method == "mergd" else 1.5
        axes.plot(folds, means, marker="o", markersize=4, color=COLOURS[method], linewidth=width, label=name)
        axes.fill_between(folds, *_band(figures), color=COLOURS[method], alpha=0.15, linewidth=0)
    axes.set_title("On the tasks so far", loc="left")
    axes.set_xlabel("checkpoints folded")
    axes.set_ylabel("accuracy on test images, %")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylim(0, 100)
    axes.grid(axis="y", color="#dddddd")
    axes.legend(loc="lower left", frameon=False, ncols=2)


def _band(figures: Sequence[Figure]) -> tuple[list[float], list[float]]:
    return [f.mean - f.spread for f in figures], [f.mean + f.spread for f in figures]


def _draw_final(axes: Axes, trials: Sequence[Trial]) -> None:
    for row, (method, figure) in enumerate(final_figures(trials).items()):
        axes.barh(row, figure.mean, xerr=figure.spread, color=COLOURS[method], ecolor="#333333", capsize=3)
        axes.text(2, row, str(figure), va="center", color="white", fontweight="bold")
    axes.set_yticks(range(len(METHODS)), list(METHODS.values()))
    axes.set_title(f"On all {len(trials[0].tasks)} tasks, {len(trials)} seeds", loc="left")
    axes.set_xlabel("accuracy, %: mean ± standard deviation")
    axes.set_xlim(0, 100)
