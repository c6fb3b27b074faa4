"""mergd beside fusion-bench, beside mergekit and beside the machine's own limits, by turns: `make bench`.

Writes docs/benchmarks.md between its markers, the samples beside it, and the chart.
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import against_fusion_bench
import against_machine
import against_mergekit
from chart import draw
from commands import work_folder
from comparing import FULL, QUICK, Part, Sizes, machine
from page import DOCS, Page

PARTS = ("fusion-bench", "mergekit", "machine")


def measured(part: str, work: Path, sizes: Sizes, peers: Path) -> Part:
    """Measure one part."""
    tools = {
        "fusion-bench": peers / "fusion-bench" / "bin" / "python",
        "mergekit": peers / "mergekit" / "bin" / "mergekit-yaml",
    }
    tool = tools.get(part)
    if tool and not tool.exists():
        print(f"{part} is not installed in {peers}: mergd alone is measured", file=sys.stderr)
        tool = None
    parts: dict[str, Callable[[], Part]] = {
        "fusion-bench": lambda: against_fusion_bench.measure(work, sizes, tool),
        "mergekit": lambda: against_mergekit.measure(work, sizes, tool),
        "machine": lambda: against_machine.measure(work, sizes),
    }
    return parts[part]()


def main() -> None:
    """Measure, and write the page."""
    arguments = options()
    given = {"rounds": arguments.rounds, "gb": arguments.gb, "counts": arguments.n, "backlog": arguments.backlog}
    sizes = replace(QUICK if arguments.quick else FULL, **{key: value for key, value in given.items() if value})
    counts = " ".join(map(str, sizes.counts))
    command = f"make bench ROUNDS={sizes.rounds} GB={sizes.gb:g} N='{counts}' BACKLOG={sizes.backlog}"
    page = Page(arguments.docs)
    for part in arguments.parts:
        print(f"mergd beside the {part}:", file=sys.stderr)
        with work_folder() as work:
            found = measured(part, work, sizes, arguments.peers.resolve())
        page.keep(part, {"command": command, "machine": machine(), **found})
    draw(page.results(), page.chart)


def options() -> argparse.Namespace:
    """Return what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--rounds", type=int, help=f"default: {FULL.rounds}")
    parser.add_argument("--gb", type=float, help=f"of the model beside the machine's limits; default: {FULL.gb:g}")
    parser.add_argument("--n", type=int, nargs="+", help="checkpoints, beside mergekit; default: 2 8 32")
    parser.add_argument("--backlog", type=int, help=f"checkpoints that arrive at once; default: {FULL.backlog}")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it works")
    parser.add_argument("--peers", type=Path, default=DOCS.parent / ".peers", help="where the packages are installed")
    parser.add_argument("--docs", type=Path, help="write the page in this folder instead of docs/")
    return parser.parse_args()


if __name__ == "__main__":
    main()
