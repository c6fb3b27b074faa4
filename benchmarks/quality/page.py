"""Writes what was measured into docs/quality.md, between its markers: python -m quality.page."""

import argparse
from collections.abc import Callable
from pathlib import Path

from quality import charts, tables
from quality.methods import METHODS
from quality.recipe import Draw
from quality.records import Result, read_all
from quality.samples import Quality
from quality.sets import set_of

ROOT = Path(__file__).resolve().parents[2]
DOCS, RESULTS = ROOT / "docs", ROOT / ".quality" / "results"
START, END = "<!-- made by `make quality`: {} -->\n", "<!-- end -->"


def drawings(quality: Quality) -> str:
    """Return the links to the charts."""
    shown = charts.drawn(quality.sets)
    return "\n".join(f"![accuracy after each fold: {', '.join(sets)}]({file})\n" for file, sets in shown.items())


BLOCKS: dict[str, Callable[[Quality], str]] = {
    "summary": tables.summary,
    "margins": tables.margins,
    "charts": lambda quality: drawings(quality) or tables.NOT_YET,
    "fusion-bench": tables.fusion_bench,
    "robustness": tables.robustness,
    "sets": tables.every_set,
    "tasks": tables.alone,
    "methods": tables.methods,
}


def is_asked_for(result: Result) -> bool:
    """Whether a result is of a draw and a method that are still to be measured: others may lie there from before."""
    return result.method in METHODS and Draw(result.training, result.order) in set_of(result.set).draws


class Page:
    """The page, the charts and the samples that all are made from, in a folder; by default the project's own."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or DOCS
        self.page, self.samples = (self.folder / f"quality.{suffix}" for suffix in ("md", "json"))

    def text(self) -> str:
        """Return the page with its tables as the samples have them."""
        quality = Quality.read(self.samples)
        page = (self.page if self.page.exists() else DOCS / self.page.name).read_text()
        for name, made in BLOCKS.items():
            start = START.format(name)
            before, found, rest = page.partition(start)
            assert found, f"{self.page} has no line {start}"
            page = before + start + "\n" + made(quality) + "\n" + END + rest.partition(END)[2]
        return page

    def make(self, results: Path) -> None:
        """Keep what the results say, and write the page and its charts anew."""
        quality = Quality.of(result for result in read_all(results) if is_asked_for(result))
        quality.write(self.samples)
        self.page.write_text(self.text())
        charts.draw(quality.sets, self.folder)


def write(results: Path, docs: Path) -> None:
    """Make the page, its charts and its samples of the results, in a folder."""
    Page(docs).make(results)


def main() -> None:
    """Write what there is now, with nothing trained or measured."""
    parser = argparse.ArgumentParser(prog="python -m quality.page", description=__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the results lie")
    parser.add_argument("--docs", type=Path, default=DOCS, help="where the page, its charts and its samples go")
    told = parser.parse_args()
    write(told.results, told.docs)


if __name__ == "__main__":
    main()
