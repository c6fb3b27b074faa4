"""Makes the table of docs/observing.md from the figures: `python tests/figures_table.py --write`."""

import sys
from pathlib import Path

from mergd.daemon.figures import FIGURES

PATH = Path(__file__).resolve().parent.parent / "docs" / "observing.md"
# What stands between these lines of the page is made here.
START, END = "<!-- made by tests/figures_table.py -->\n", "<!-- end -->"


def table() -> str:
    """Return the table of the figures."""
    rows = [
        f"| `{figure.name}` | {figure.kind} | {f'`{figure.label}`' if figure.label else '-'} | {figure.meaning} |"
        for figure in FIGURES
    ]
    return "\n".join(["| figure | kind | label | what it means |", "|---|---|---|---|", *rows]) + "\n"


def text() -> str:
    """Return docs/observing.md with its table as it should be."""
    page = PATH.read_text()
    before, found, rest = page.partition(START)
    assert found, f"docs/observing.md has no line {START}"
    return before + START + "\n" + table() + "\n" + END + rest.partition(END)[2]


if __name__ == "__main__":
    if sys.argv[1:] == ["--write"]:
        PATH.write_text(text())
    else:
        sys.stdout.write(text())
