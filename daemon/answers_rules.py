"""How answers about fold rules look to people: all of them as a table, or one in full."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..state.wording import size
from .display import facts, lines, out, safe, table

NONE = "-"
MOSTLY = 0.5  # the share of a rule's slots from which on the table says whose they are
MOST_NAMES = 8  # of patterns of weights
HEADS = ("rule", "slots", "version", "folding", "reads", "order", "removal", "needs", "what it does")
HEADS_OF_FORMS = ("rule", "square", "1:4", "4:1", "folding", "reads", "order", "removal", "needs", "what it does")


def rules(answer: Mapping[str, Any]) -> None:
    """Print a row for each rule, what the columns mean, and whose slots are larger than the weights themselves."""
    base, found = answer["base"], answer["rules"]
    trouble(answer)
    table(HEADS if base else HEADS_OF_FORMS, [row(rule, bool(base)) for rule in found])
    out.print()
    lines(base_legend(base) if base else FORMS_LEGEND)
    lines(LEGEND)
    if any(rule["in_use"] for rule in found):
        out.print("*: in use, with its parameters and with all that is kept besides.")
    lines(large for rule in found for large in dominated(rule))


def trouble(answer: Mapping[str, Any]) -> None:
    """Say why this is about no base model, where it should have been."""
    if answer["trouble"]:
        out.print(f"without the configuration's base model: {safe(answer['trouble'])}\n")


LEGEND = (
    "reads: passes over a checkpoint before its fold. order: does the order of arrival matter?",
    "removal: exact is by subtraction, replay folds the others again. One rule in full: mergd rules NAME",
)
FORMS_LEGEND = (
    "square, 1:4, 4:1: bytes of slots of such a matrix (rows to columns), in multiples of it in float32.",
    "folding: what one fold takes besides, likewise. For a base model: mergd rules --base FOLDER",
)


def base_legend(base: Mapping[str, Any]) -> tuple[str, ...]:
    """Return what the columns mean where there is a base model."""
    folded, model = size(base["float32_bytes"]), size(base["model_bytes"])
    return (
        f"base model: {safe(base['base_model'])}, {base['weights']} weights to fold, {folded} in float32.",
        f"slots: in multiples of these. version: slots and the published {model}. folding: what one fold takes besides.",
    )


def row(rule: Mapping[str, Any], base: bool) -> list[str]:
    """Return what the table says of a rule."""
    name = f"[bold]{safe(rule['rule'])}[/]" + ("*" if rule["in_use"] else "")
    return [name, *(figures(rule) if base else form_figures(rule)), *asks(rule), words(rule)]


def figures(rule: Mapping[str, Any]) -> list[str]:
    """Return what a version and a fold take of a base model."""
    if rule["slots_bytes"] is None:
        return [NONE] * 3
    return [f"{rule['multiple'] or 0:.2f}x", size(rule["version_bytes"]), f"+{size(rule['spilled_bytes'])}"]


def form_figures(rule: Mapping[str, Any]) -> list[str]:
    """Return what is kept of a matrix of each form, and what is spilled of a square one."""
    kept, spilled = rule["multiples"], rule["spilled_multiples"]
    return [*(f"{times:.3g}x" for times in kept.values()), f"+{spilled['square']}x"] if kept else [NONE] * 4


def asks(rule: Mapping[str, Any]) -> list[str]:
    """Return what a fold asks for and what may be done after it."""
    if rule["order_matters"] is None:
        return [NONE] * 4
    order = "matters" if rule["order_matters"] else "any"
    removal = "exact" if rule["exact_removal"] else "replay"
    return [str(rule["passes"]), order, removal, ", ".join(map(safe, rule["needs"])) or NONE]


def words(rule: Mapping[str, Any]) -> str:
    """Return what a rule does and where that was published, or what is wrong with it."""
    if rule["error"]:
        return f"[red]cannot be used: {safe(rule['error'])}[/]"
    only = "re-merge only. " if rule["remerge_only"] else ""
    source = f" [dim]({safe(rule['source'])})[/]" if rule["source"] else ""
    return f"{only}{safe(rule['does'])}{source}"


def dominated(rule: Mapping[str, Any]) -> Iterator[str]:
    """Yield whose slots are larger than the weights themselves, where these are most of what a rule keeps."""
    if rule["larger"] and rule["larger"]["share"] >= MOSTLY:
        share, names = f"{rule['larger']['share']:.0%}", named(rule["larger"]["weights"])
        yield f"{safe(rule['rule'])}: {share} of its slots are larger than their weights, those of {names}"


def named(patterns: Mapping[str, int]) -> str:
    """Return patterns of names, each with how many weights have it."""
    shown = [f"{safe(name)} ({count})" if count > 1 else safe(name) for name, count in patterns.items()]
    more = [f"{len(shown) - MOST_NAMES} more"] if len(shown) > MOST_NAMES else []
    return ", ".join(shown[:MOST_NAMES] + more)


# ---------------------------------------------------------------------------------------------------- one rule in full


def rule(answer: Mapping[str, Any]) -> None:
    """Print one rule in full: what it says, its parameters, what it keeps of which weights, and what that takes."""
    (found,) = answer["rules"]
    trouble(answer)
    facts({"rule": found["rule"], "package": found["package"], "source": found["source"], "error": found["error"]})
    out.print(f"\n{safe_lines(found['description'])}")
    if found["parameters"] or found["remerge_only"]:
        out.print()
    for parameter in found["parameters"]:
        default = "must be given" if parameter["required"] else f"default {parameter['default']!r}"
        out.print(f"[bold]{safe(parameter['name'])}[/]: {safe(parameter['type'])}, {safe(default)}")
    if found["remerge_only"]:
        out.print("for a re-merge only: it keeps nothing, and needs all checkpoints at once")
    if found["order_matters"] is not None:
        lines(["", *promises(found), *taken(found), *dominated(found), "", *kept(found["statistics"], answer["base"])])


def safe_lines(text: str) -> str:
    """Return a text of several lines that can do nothing to a terminal."""
    return "\n".join(safe(line) for line in text.splitlines())


def promises(found: Mapping[str, Any]) -> Iterator[str]:
    """Yield what a fold asks for and what may be done after it."""
    yield f"order of arrival: {'matters' if found['order_matters'] else 'does not matter'}"
    yield f"removal: {'exact, by subtraction' if found['exact_removal'] else 'by folding the others again'}"
    for survey in found["surveys"]:
        passes = "1 pass" if survey["passes"] == 1 else f"{survey['passes']} passes"
        yield f"before a fold: {safe(survey['survey'])}, {passes} over the checkpoint"
    if found["needs"]:
        yield f"needs beside each checkpoint: {', '.join(map(safe, found['needs']))}"
    if found["seeded"]:
        yield "draws random numbers, from a seed of each weight's name and bytes"
    if found["read_by"]:
        yield f"what it keeps is read by {', '.join(map(safe, found['read_by']))} too: mergd publish --rule NAME"


def taken(found: Mapping[str, Any]) -> Iterator[str]:
    """Yield what a version and a fold take."""
    if found["slots_bytes"] is not None:
        slots, times = size(found["slots_bytes"]), f"{found['multiple'] or 0:.2f}"
        yield f"a version takes {size(found['version_bytes'])}, {slots} of it slots: {times} times the weights in float32"
        yield f"while one is folded, it takes {size(found['spilled_bytes'])} more"
    for form, times in found["multiples"].items():
        more = "; as much again while it is folded" if found["spilled_multiples"][form] else ""
        yield f"slots of a matrix, {form}: {times:.3g} times its size in float32{more}"


def kept(statistics: Sequence[Mapping[str, Any]], base: object) -> Iterator[str]:
    """Yield what is kept, by kind of weight, with the slots of the largest."""
    for entry in statistics:
        example = entry["example"]
        what = f"{entry['weights']} weights, {size(entry['bytes'])}; " if base else ""
        largest = f"{safe(example['weight'])} {tuple(example['shape'])}"
        yield f"[bold]{entry['kind']}[/]: {safe(entry['statistic'])}, {what}{'the largest' if base else 'such as'}: {largest}"
        for name, slot in entry["slots"].items():
            yield f"    {safe(name)}  {slot['dtype']} {tuple(slot['shape'])}  {size(slot['bytes'])}"
