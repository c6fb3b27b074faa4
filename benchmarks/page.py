"""Writes what was measured into docs/benchmarks.md, between its markers, and into a file that keeps the samples."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import against_fusion_bench
import against_machine
import against_mergekit
import scale
from comparing import Promise, table

DOCS = Path(__file__).resolve().parents[1] / "docs"
START, END = "<!-- made by `make bench`: {} -->\n", "<!-- end -->"
PARTS: dict[str, ModuleType] = {
    "fusion-bench": against_fusion_bench,
    "mergekit": against_mergekit,
    "machine": against_machine,
    "scale": scale,
}
DRAWN = {"fusion-bench", "mergekit", "machine"}  # parts that the chart shows
CHART = "![CPU seconds of a fold, seconds beside mergekit, seconds beside a copy of the same bytes](benchmarks.svg)"
NOT_YET = "Not measured yet.\n"
Results = dict[str, Any]  # by part


class Page:
    """The page, the chart and the samples that both are made from, in a folder; by default the project's own."""

    def __init__(self, folder: Path | None = None) -> None:
        self.page, self.samples, self.chart = (
            (folder or DOCS) / f"benchmarks.{suffix}" for suffix in ("md", "json", "svg")
        )

    def results(self) -> Results:
        """Return what was measured last, by part."""
        return json.loads(self.samples.read_text()) if self.samples.exists() else {}

    def keep(self, part: str, measured: Mapping[str, Any]) -> None:
        """Keep what was measured of one part, and write the page anew."""
        results = self.results() | {part: measured}
        self.samples.write_text(json.dumps(results, indent=1) + "\n")
        self.page.write_text(self.text())

    def text(self) -> str:
        """Return the page with its tables as the samples have them."""
        results = self.results()
        made = {"figures": summary(results)} | {part: section(part, results) for part in PARTS}
        page = (self.page if self.page.exists() else DOCS / self.page.name).read_text()
        for name, tables in made.items():
            start = START.format(name)
            before, found, rest = page.partition(start)
            assert found, f"{self.page} has no line {start}"
            page = before + start + "\n" + tables + "\n" + END + rest.partition(END)[2]
        return page


def section(part: str, results: Results) -> str:
    """Return the tables of one part, and what they were measured on."""
    if part not in results:
        return NOT_YET
    measured = results[part]
    return f"`{measured['command']}`, {described(measured['machine'])}.\n\n{PARTS[part].tables(measured)}"


def described(machine: Mapping[str, Any]) -> str:
    """Return the machine in words."""
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    parts = (machine["processor"], f"{machine['cores']} cores", machine["memory"], machine["kernel"])
    return f"{machine['date']}: {', '.join(parts)}; {versions}"


def summary(results: Results) -> str:
    """Return the table of the figures to reach."""
    rows = [[one.what, one.target, one.got, "yes" if one.kept else "**no**"] for one in promises(results)]
    made = table(["figure", "to reach", "got: median (least to most)", "reached"], rows) if rows else NOT_YET
    return f"{made}\n{CHART}\n" if DRAWN & set(results) else made


def promises(results: Results) -> Iterator[Promise]:
    """Yield all figures to reach that were measured."""
    for part, module in PARTS.items():
        if part in results:
            yield from module.promises(results[part])
