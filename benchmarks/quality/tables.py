"""The page's tables, each from the samples alone."""

from collections.abc import Callable, Iterable, Sequence
from statistics import fmean

from quality.intervals import Interval, by_training, paired
from quality.samples import BEST, ENDS, INDIVIDUAL, POISON, ZERO_SHOT, Measured, Quality

NOT_YET = "Not measured yet.\n"
RECOMMENDED, FOR_ADAPTERS = "gram", "gram-mean-norm"  # the rules whose margins are shown
OPCM, TSVM, WITH_MEANS = "opcm-block", "tsvm", "opcm-mean-others"
# The same method twice: as mergd folds it, and as the fusion-bench package does.
OURS, THEIRS = "opcm-block_diagonal", "fusion-bench-opcm"
GUARDS = ("", "limits", "gate")  # what may hold it, behind that; nothing first
ADAPTERS = "-lora"  # how the name of a set of adapters ends


def summary(quality: Quality) -> str:
    """Return the final average of each method on each set."""
    sets = clean(quality)
    rows = []
    for method in sorted(_methods(sets.values()), key=lambda method: _short_of_individual(method, sets.values())):
        cells = [_cell(one.values(method), lambda values: str(Interval.of(values))) for one in sets.values()]
        rows.append([_name(method), *cells])
    return table(["method", *sets], rows)


def margins(quality: Quality) -> str:
    """Return by how much the recommended rule is above others, on each set."""
    others, rows = (OPCM, WITH_MEANS, TSVM, INDIVIDUAL), []
    for name, one in clean(quality).items():
        rule = FOR_ADAPTERS if name.endswith(ADAPTERS) else RECOMMENDED
        if one.values(rule):
            rows.append([name, _name(rule), *(_margin(one, rule, other) for other in others)])
    return table(["set", "rule", *(f"over {_name(other)}" for other in others)], rows)


def fusion_bench(quality: Quality) -> str:
    """Return OPCM of the fusion-bench package beside mergd's variant that drops the diagonal as it does."""
    rows = []
    for name, one in clean(quality).items():
        if both := paired(one.values(OURS), one.values(THEIRS)):
            figures = [Interval.of(by_training(one.values(method))) for method in (THEIRS, OURS)]
            rows.append([name, *figures, f"{both.mean:+z.2f}", f"{_furthest(one):+z.2f}"])
    heads = ["set", "fusion-bench's OPCM", "mergd's `opcm`, `block_diagonal`", "difference", "largest on any draw"]
    return table(heads, rows)


def robustness(quality: Quality) -> str:
    """Return what a bad checkpoint in the stream leaves of the honest tasks, unguarded and guarded, and what was held."""
    rows = []
    for (plain, poison), by_guard in _poisoned(quality).items():
        for method in sorted(_methods(by_guard.values())):
            draws = {draw for one in by_guard.values() for draw in one.values(method)}
            without = quality.sets[plain].values(method) if plain in quality.sets else {}
            figures = [{draw: without[draw] for draw in draws if draw in without}]
            figures += [by_guard[guard].values(method) if guard in by_guard else {} for guard in GUARDS]
            cells = [_cell(values, lambda values: str(Interval.of(values))) for values in figures]
            rows.append([plain, poison, _name(method), *cells, *(_outs(by_guard.get(g), method) for g in GUARDS if g)])
    guards = [guard or "unguarded" for guard in GUARDS]
    heads = [
        "set",
        "bad checkpoint",
        "method",
        "without it",
        *guards,
        *(f"out by {guard}" for guard in GUARDS if guard),
    ]
    return table(heads, rows)


def every_set(quality: Quality) -> str:
    """Return a table of each set, with a heading."""
    parts = [f"### {name}\n\n{_draws(one)}\n\n{one_set(one)}" for name, one in clean(quality).items()]
    return "\n".join(parts) or NOT_YET


def one_set(one: Measured) -> str:
    """Return all figures of a set, the best method first, between the individual models and the base."""
    heads = [
        *("method", "final average", "worst task", "backward transfer", "unseen tasks", "distance", "seconds a fold"),
        *("state, in models", f"over `{OPCM}`"),
    ]
    merged = [method for method in one.samples if method not in ENDS]
    merged.sort(key=lambda method: _short_of_individual(method, [one]))
    ordered = [method for method in (INDIVIDUAL, *merged, ZERO_SHOT) if method in one.samples]
    return table(heads, [[_name(method), *_figures(one, method)] for method in ordered])


def alone(quality: Quality) -> str:
    """Return what the base and the individual model get on each task."""
    parts = []
    for name, one in clean(quality).items():
        rows = []
        for task, by in one.alone.items():
            base, tuned = by.get(ZERO_SHOT, ()), by.get(INDIVIDUAL, ())
            rows.append([task, _told(base), _told(tuned), _told(tuned, min)])
        if not rows:
            continue
        heads = ["task", ZERO_SHOT, INDIVIDUAL, "individual, least of a draw"]
        parts.append(f"### {name}, task by task\n\n{table(heads, rows)}")
    return "\n".join(parts) or NOT_YET


def methods(quality: Quality) -> str:
    """Return what each method is."""
    rows = [[_name(method), what] for method, what in quality.methods.items()]
    return table(["method", "what it is: mergd's rule with its parameters, but for a reference"], rows)


def table(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a table, if it has rows."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines) if rows else NOT_YET


def clean(quality: Quality) -> dict[str, Measured]:
    """Return the sets into which nothing bad was put."""
    return {name: one for name, one in quality.sets.items() if POISON not in name}


def _figures(one: Measured, method: str) -> list[str]:
    shown: dict[str, Callable[[Sequence[float]], str]] = {
        "final": lambda values: str(Interval.of(values)),
        "worst": lambda values: f"{fmean(values):.1f}",
        "backward": lambda values: f"{fmean(values):+z.1f}",
        "unseen": lambda values: f"{fmean(values):.1f}",
        "distance": lambda values: f"{fmean(values):.2f}",
        "seconds": lambda values: f"{fmean(values):.2f}",
        "state": lambda values: f"{fmean(values):.2f}",
    }
    cells = [_cell(one.values(method, figure), told) for figure, told in shown.items()]
    return [*cells, _margin(one, method, OPCM)]


def _cell(values: dict[str, float], told: Callable[[Sequence[float]], str]) -> str:
    return told(by_training(values)) if values else ""


def _margin(one: Measured, ours: str, theirs: str) -> str:
    margin = paired(one.values(ours), one.values(theirs)) if ours != theirs else None
    return margin.as_margin() if margin else ""


def _furthest(one: Measured) -> float:
    ours, theirs = one.values(OURS), one.values(THEIRS)
    return max((ours[draw] - theirs[draw] for draw in ours if draw in theirs), key=abs)


def _short_of_individual(method: str, sets: Iterable[Measured]) -> float:
    """Return how far a method is below the individual models, on the mean of the sets where both are."""
    short = [paired(one.values(INDIVIDUAL), one.values(method)) for one in sets]
    found = [margin.mean for margin in short if margin]
    return fmean(found) if found else 0.0


def _methods(sets: Iterable[Measured]) -> list[str]:
    return list(dict.fromkeys(method for one in sets for method in one.samples))


def _draws(one: Measured) -> str:
    told = ", ".join(draw.replace("-", "/") for draw in one.draws)
    best = f" `{BEST}`: the sum times {one.constant}." if one.constant else ""
    return f"{one.tasks} tasks; draws (training/order): {told}.{best}"


def _name(method: str) -> str:
    return method if method in ENDS else f"`{method}`"


def _poisoned(quality: Quality) -> dict[tuple[str, str], dict[str, Measured]]:
    """Return, by set and bad checkpoint, what was measured with each guard: vision-8+noise-gate."""
    found: dict[tuple[str, str], dict[str, Measured]] = {}
    for name, one in quality.sets.items():
        plain, _, poisoned = name.partition(POISON)
        poison, _, guard = poisoned.partition("-")
        if poison:
            found.setdefault((plain, poison), {})[guard] = one
    return found


def _outs(one: Measured | None, method: str) -> str:
    """Return what was held or refused, and in how many of the draws."""
    every = list(one.samples.get(method, {}).values()) if one else []
    told = sorted({out for sample in every for out in sample.out})
    return "; ".join(f"{out} ({sum(out in sample.out for sample in every)} of {len(every)})" for out in told)


def _told(values: Sequence[float], of: Callable[[Sequence[float]], float] = fmean) -> str:
    return f"{of(values):.1f}" if values else ""
