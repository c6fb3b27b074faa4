"""The charts: accuracy after each fold, with intervals; the same bytes for the same figures."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.style
from chart_style import STYLE
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from quality.intervals import Interval, by_training
from quality.samples import INDIVIDUAL, ZERO_SHOT, Measured
from quality.tables import OPCM, RECOMMENDED, TSVM

COLOURS = {
    INDIVIDUAL: "#777777",
    RECOMMENDED: "#0072B2",
    TSVM: "#009E73",
    OPCM: "#D55E00",
    "task_arithmetic": "#E69F00",
    "average": "#CC79A7",
    ZERO_SHOT: "#BBBBBB",
}
DASHED = (INDIVIDUAL, ZERO_SHOT)
# By file, the sets that are drawn side by side in it.
CHARTS = {"quality.svg": ("vision-20", "text-8"), "quality-stream.svg": ("vision-50",)}


def drawn(sets: Mapping[str, Measured]) -> dict[str, list[str]]:
    """Return, for each chart that there is something to draw in, the sets that it shows."""
    shown = {file: [name for name in names if name in sets and _lines(sets[name])] for file, names in CHARTS.items()}
    return {file: names for file, names in shown.items() if names}


def draw(sets: Mapping[str, Measured], folder: Path) -> None:
    """Draw each chart into a file of the folder, and remove what nothing is drawn in."""
    for file in CHARTS:
        (folder / file).unlink(missing_ok=True)
    for file, names in drawn(sets).items():
        with matplotlib.style.context(["default", STYLE]):
            canvas = Figure(figsize=(4.8 * max(len(names), 1.4), 3.8), facecolor="white", layout="constrained")
            for axes, name in zip(canvas.subplots(1, len(names), squeeze=False)[0], names, strict=True):
                _draw_set(axes, name, sets[name])
            lines = {str(line.get_label()): line for axes in canvas.axes for line in axes.get_lines()}
            canvas.legend(handles=list(lines.values()), loc="outside lower center", frameon=False, ncols=4)
            canvas.savefig(folder / file, format="svg", metadata={"Date": None, "Creator": None})


def curve(measured: Measured, method: str) -> list[Interval]:
    """Return a method's accuracy on the tasks so far, after each fold; empty of what has no curve."""
    curves = {draw: sample.curve for draw, sample in measured.samples.get(method, {}).items() if sample.curve}
    folds = zip(*curves.values(), strict=True)
    return [Interval.of(by_training(dict(zip(curves, values, strict=True)))) for values in folds]


def _lines(measured: Measured) -> list[str]:
    return [method for method in COLOURS if curve(measured, method)]


def _draw_set(axes: Axes, name: str, measured: Measured) -> None:
    for method in _lines(measured):
        points = curve(measured, method)
        folds = range(1, len(points) + 1)
        colour, style = COLOURS[method], "--" if method in DASHED else "-"
        axes.plot(folds, [point.mean for point in points], style, color=colour, label=method)
        if all(point.wide for point in points):
            axes.fill_between(folds, *_band(points), color=colour, alpha=0.15, linewidth=0)
    axes.set_title(f"{name}: on the tasks so far", loc="left")
    axes.set_xlabel("checkpoints folded")
    axes.set_ylabel("accuracy, %")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(axis="y", color="#dddddd")


def _band(points: Sequence[Interval]) -> tuple[list[float], list[float]]:
    return [point.lower for point in points], [min(100.0, point.mean + point.half) for point in points]
