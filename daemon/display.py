"""What people see: tables, trees, progress and errors, in a terminal or as plain lines. Names are shown escaped."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Table

from ..state.errors import MergdError
from ..state.records import WeightReport
from .progress import Progress

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)
LINE_EVERY = 5.0  # seconds between lines where there is no terminal


def safe(text: object) -> str:
    """Return text that can do nothing to a terminal: no markup, no escape sequences, no new lines."""
    return escape("".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text)))


def size(nbytes: float) -> str:
    """Return a number of bytes as people read it."""
    for unit in ("B", "kB", "MB", "GB"):
        if nbytes < 1000:
            return f"{nbytes:.0f} B" if unit == "B" else f"{nbytes:.1f} {unit}"
        nbytes /= 1000
    return f"{nbytes:.1f} TB"


@contextmanager
def shown_progress() -> Iterator[Callable[[Progress], None]]:
    """Give a function that shows how far a piece of work is: a bar on a terminal, a line now and then elsewhere."""
    if not sys.stderr.isatty():
        yield _Lines()
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Bar(*columns, console=err, transient=True) as bar:
        task = bar.add_task("", total=None, visible=False)

        def show(progress: Progress) -> None:
            description = f"{safe(progress.doing)} {progress.weights}/{progress.all_weights}"
            bar.update(
                task,
                description=description,
                completed=progress.nbytes,
                total=progress.all_bytes,
                visible=bool(progress.doing),
            )

        yield show


class _Lines:
    def __init__(self) -> None:
        self._last = time.monotonic()

    def __call__(self, progress: Progress) -> None:
        if progress.doing and time.monotonic() - self._last >= LINE_EVERY:
            self._last = time.monotonic()
            err.print(safe(progress))


def checkpoints(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Return the table of `mergd list`."""
    table = Table("name", "state", "since", "digest", "why, or what it waits for", box=None, header_style="bold")
    for row in rows:
        why = "; ".join(f"{r['code']}: {r['found']}. Next: {r['next_step']}" for r in row["reasons"])
        state = row["state"] + ("" if row["state"] != "folded" or row["in_model"] else " (rolled away)")
        table.add_row(
            *map(safe, (row["name"], state, row["since"][:19], (row["digest"] or "")[:12], why or row["waits_for"]))
        )
    return table


def graph(log: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield the lines of `mergd log`, newest first; each line of history has a column, which joins its parent's."""
    columns: list[int] = []  # the version that each column leads down to
    for entry in log:
        if entry["version"] not in columns:
            columns.append(entry["version"])
        here = columns.index(entry["version"])
        yield " ".join("●" if k == here else "│" for k in range(len(columns))) + f" {version_line(entry)}"
        if entry["parent"] is None or entry["parent"] in columns:
            del columns[here]
            if entry["parent"] in columns:
                joined = columns.index(entry["parent"])
                yield "│ " * joined + "├" + "──" * (here - joined - 1) + "─╯"
        else:
            columns[here] = entry["parent"]


def version_line(entry: Mapping[str, Any]) -> str:
    """Return one version in a line."""
    name = entry["checkpoint"]["name"] if entry["checkpoint"] else entry["cause"]
    head = " [bold green]<- head[/]" if entry["head"] else ""
    kept = "" if entry["kept"] else " [dim](files dropped)[/]"
    folded = entry["totals"]["folded"]
    when = entry["created_at"][:19].replace("T", " ")
    return (
        f"[bold]v{entry['version']}[/] {when}  {safe(name)}  ({folded} folded, scale {entry['scale']:.4g}){kept}{head}"
    )


def weights(reports: Mapping[str, WeightReport]) -> Table:
    """Return the per-weight statistics of a version."""
    table = Table("weight", "norm of the newcomer", "relative to the base", "split rank", "survived", box=None)
    for name, report in reports.items():
        relative = f"{report.task_norm / report.base_norm:.3g}" if report.base_norm else "-"
        row = (name, f"{report.task_norm:.4g}", relative, f"{report.split_rank:g}", f"{report.survived:.1%}")
        table.add_row(*map(safe, row))
    return table


def lines(texts: Iterable[str]) -> None:
    """Print lines."""
    for text in texts:
        out.print(text)


def facts(values: Mapping[str, Any]) -> None:
    """Print names and values, one a line; what is empty is left out."""
    for name, value in values.items():
        if value not in ("", None, [], {}):
            out.print(f"[bold]{safe(name)}[/]: {safe(value)}")


def rolled_back(result: Mapping[str, Any]) -> None:
    """Say what a rollback took out of the model, and the commands that change that."""
    if result["head"] == result["before"]:
        out.print(f"the head is v{result['head']} already")
        return
    out.print(
        f"the head is v{result['head']} now (it was v{result['before']})" + (", and paused" if result["paused"] else "")
    )
    gone = result["out"]
    if not gone:
        return
    names = [safe(item["name"]) for item in gone]
    versions = [f"{name} (v{item['version']})" for name, item in zip(names, gone, strict=True)]
    out.print(f"no longer in the model: {', '.join(versions)}")
    out.print(f"  to put some back:       mergd fold --again {names[-1]}")
    if len(names) > 1:
        out.print(f"  to take out {names[0]} only: mergd fold --again {' '.join(names[1:])}")
    out.print(f"  to put all back:        mergd rollback v{result['before']}")


def failed(error: MergdError) -> None:
    """Print an error and its hint."""
    err.print(f"[bold red]mergd:[/] {safe(error)}")
    if error.hint:
        err.print(f"  {safe(error.hint)}")
