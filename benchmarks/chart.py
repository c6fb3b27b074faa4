"""The chart: CPU seconds beside fusion-bench, seconds beside mergekit, and seconds beside a copy of the same bytes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib.style
from against_fusion_bench import OURS, WHO
from against_mergekit import METHODS
from chart_style import STYLE
from comparing import Part, values
from matplotlib.axes import Axes
from matplotlib.figure import Figure

BLUE, RED, LIGHT = "#0072B2", "#D55E00", "#56B4E9"
MARKERS = {"task_arithmetic": "o", "ties": "s"}


def draw(results: Mapping[str, Any], path: Path) -> None:
    """Draw what was measured; the same bytes for the same figures."""
    panels = [(results[part], drawn) for part, drawn in PANELS.items() if part in results]
    with matplotlib.style.context(["default", STYLE]):
        canvas = Figure(figsize=(4 * len(panels), 3.4), facecolor="white", layout="constrained")
        for axes, (part, drawn) in zip(canvas.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
            drawn(axes, part)
        canvas.savefig(path, format="svg", metadata={"Date": None, "Creator": None})


def _fusion_bench(axes: Axes, part: Part) -> None:
    names = [who for who in WHO if f"{who}/fold" in part["samples"]]
    for row, who in enumerate(names):
        fold = values(part, f"{who}/fold", "cpu").middle
        idle = values(part, f"{who}/idle", "cpu").middle if f"{who}/idle" in part["samples"] else 0.0
        axes.barh(row, fold, color=BLUE if who in OURS else RED)
        axes.barh(row, idle, left=fold, color=LIGHT)
        axes.text(fold + idle, row, f" {fold:.3g}" + (f" + {idle:.3g} while idle" if idle else ""), va="center")
    short = {who: who.replace("-1", ",\none thread").replace("_", "_\n") for who in names}
    axes.set_yticks(range(len(names)), [short[who] for who in names])
    axes.invert_yaxis()
    axes.set_title("One OPCM fold, ViT-B/32", loc="left")
    axes.set_xlabel("CPU seconds")
    axes.set_xlim(right=1.6 * axes.get_xlim()[1])  # room for the words


def _mergekit(axes: Axes, part: Part) -> None:
    counts = part["facts"]["counts"]
    for rule in METHODS:
        for who, colour in (("mergekit", RED), ("mergd", BLUE)):
            there = [n for n in counts if f"{who}/{rule}/{n}" in part["samples"]]
            seconds = [values(part, f"{who}/{rule}/{n}", "wall").middle for n in there]
            axes.plot(there, seconds, marker=MARKERS[rule], color=colour, label=f"{who}, {rule}")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(counts, list(map(str, counts)))
    axes.set_title("Model N: fold it, or merge all N", loc="left")
    axes.set_xlabel("N")
    axes.set_ylabel("seconds")
    axes.legend(frameon=False)


def _machine(axes: Axes, part: Part) -> None:
    names = list(part["facts"])
    for row, name in enumerate(names):
        for what, offset, colour in (("copy", -0.2, "#777777"), ("inside", 0.2, BLUE)):
            seconds = values(part, f"{name}/{what}", "wall").middle
            label = {"copy": "copy", "inside": "fold"}[what] if not row else None
            axes.barh(row + offset, seconds, 0.38, color=colour, label=label)
            axes.text(seconds, row + offset, f" {seconds:.3g}", va="center")
    axes.set_yticks(range(len(names)), [name.replace("/", "\n") for name in names])
    axes.invert_yaxis()
    axes.set_title("A fold, and a copy of its bytes", loc="left")
    axes.set_xlabel("seconds")
    axes.set_xlim(right=1.2 * axes.get_xlim()[1])
    axes.legend(frameon=False)


PANELS = {"fusion-bench": _fusion_bench, "mergekit": _mergekit, "machine": _machine}
