"""The terminal: lines, progress and errors, as rich text or plain. Names that came from outside are shown escaped."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import StringIO
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Table

from ..state.errors import MergdError
from .progress import Progress

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)
WIDEST = 100  # columns of a table on a terminal
UNBOUNDED = 10_000  # and where nobody looks at it but a program
LINE_EVERY = 5.0  # seconds between lines where there is no terminal


def safe(text: object) -> str:
    """Return text that can do nothing to a terminal: no markup, no escape sequences, no new lines."""
    return escape("".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text)))


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


def lines(texts: Iterable[str]) -> None:
    """Print lines."""
    for text in texts:
        out.print(text)


def facts(values: Mapping[str, Any]) -> None:
    """Print names and values, one a line; what is empty is left out."""
    for name, value in values.items():
        if value not in ("", None, [], {}):
            text = ", ".join(f"{key} {part}" for key, part in value.items()) if isinstance(value, Mapping) else value
            out.print(f"[bold]{safe(name)}[/]: {safe(text)}")


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print rows of markup under heads: on a terminal the last column is wrapped, elsewhere each row is one line."""
    shown = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
    for head in heads:
        shown.add_column(head, no_wrap=head != heads[-1] or not out.is_terminal)
    for row in rows:
        shown.add_row(*row)
    if out.is_terminal:
        out.print(shown, width=min(out.width, WIDEST), soft_wrap=False)
        return
    plain = Console(file=StringIO(), width=UNBOUNDED, highlight=False)
    with plain.capture() as drawn:
        plain.print(shown)
    for line in drawn.get().splitlines():
        out.print(line.rstrip(), markup=False)


def failed(error: MergdError) -> None:
    """Print an error and its hint."""
    err.print(f"[bold red]mergd:[/] {safe(error)}")
    if error.hint:
        err.print(f"  {safe(error.hint)}")
