"""Makes the tables of docs/rules.md from the registry: `python tests/rules_table.py --write`."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mergd.daemon.rules import FORMS, describe
from mergd.plugins.registry import names, package

PATH = Path(__file__).resolve().parent.parent / "docs" / "rules.md"
# What stands between these lines of the page is made here.
START, END = "<!-- made by tests/rules_table.py: {} -->\n", "<!-- end -->"
Facts = Mapping[str, Any]


def ours() -> list[Facts]:
    """Return what mergd's own rules say of themselves, by name."""
    return [describe(name) for name in sorted(names("rules")) if package("rules", name).startswith("mergd ")]


def table(heads: Sequence[str], rows: Iterator[list[str]]) -> str:
    """Return a table; a bar in a cell would end it."""
    lines = [list(heads), *([cell.replace("|", "or") for cell in row] for row in rows)]
    drawn = [f"| {' | '.join(line)} |\n" for line in lines]
    return "".join([drawn[0], "|" + "---|" * len(heads) + "\n", *drawn[1:]])


def fold_rules() -> str:
    """Return the table of the rules that fold."""
    heads = ("rule", "what it reads", *FORMS, "spills", "reads", "order", "removal", "needs", "source")
    return table(heads, (fold_row(facts) for facts in ours() if not facts["remerge_only"]))


def fold_row(facts: Facts) -> list[str]:
    """Return what the table says of a rule that folds."""
    return [
        f"`{facts['rule']}`",
        facts["does"],
        *(f"{times:.3g}" for times in facts["multiples"].values()),
        "1" if any(facts["spilled_multiples"].values()) else "0",
        str(facts["passes"]),
        "matters" if facts["order_matters"] else "any",
        "exact" if facts["exact_removal"] else "replay",
        ", ".join(f"`{need}`" for need in facts["needs"]) or "-",
        facts["source"],
    ]


def remerge_rules() -> str:
    """Return the table of the rules for a re-merge only."""
    rows = ([f"`{facts['rule']}`", facts["does"], facts["source"]] for facts in ours() if facts["remerge_only"])
    return table(("rule", "what it does", "source"), rows)


def parameters() -> str:
    """Return the table of all rules' parameters."""
    rows = (
        [f"`{facts['rule']}`", f"`{p['name']}`", p["type"], f"`{p['default']}`"]
        for facts in ours()
        for p in facts["parameters"]
    )
    return table(("rule", "parameter", "what it may be", "default"), rows)


TABLES = {"fold_rules": fold_rules, "remerge_rules": remerge_rules, "parameters": parameters}


def text() -> str:
    """Return docs/rules.md with its tables as they should be."""
    page = PATH.read_text()
    for name, made in TABLES.items():
        start = START.format(name)
        before, found, rest = page.partition(start)
        assert found, f"docs/rules.md has no line {start}"
        page = before + start + "\n" + made() + "\n" + END + rest.partition(END)[2]
    return page


if __name__ == "__main__":
    if sys.argv[1:] == ["--write"]:
        PATH.write_text(text())
    else:
        sys.stdout.write(text())
