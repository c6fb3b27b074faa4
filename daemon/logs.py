"""Logging: to the journal with its fields, where stderr leads there; else to stderr, one line each. A newline in a name adds none."""

import logging
import os
import sys
from pathlib import Path

from .journal import JOURNAL, PRIORITIES, JournalHandler

STDERR = 2


class _Lines(logging.Formatter):
    def __init__(self, *, journald: bool, marks: bool = True) -> None:
        super().__init__("%(message)s" if journald else "%(asctime)s %(levelname)-7s %(message)s")
        self._marks = journald and marks

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        lines = [_printable(line) for line in (text.split("\n") if record.exc_info else [text])]
        mark = f"<{PRIORITIES[record.levelname]}>" if self._marks else ""
        return "\n".join(mark + line for line in lines)


def _printable(line: str) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)


def log_to_stderr(verbose: bool, journal: Path = JOURNAL) -> None:
    """Send mergd's log to stderr, or to the journal that stderr leads to."""
    handler: logging.Handler = logging.StreamHandler(sys.stderr)
    journald = leads_to_journal(STDERR, os.environ.get("JOURNAL_STREAM", ""))
    handler.setFormatter(_Lines(journald=journald))
    if journald and journal.is_socket():
        handler = JournalHandler(journal, otherwise=handler)
        handler.setFormatter(_Lines(journald=True, marks=False))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("mergd").setLevel(logging.DEBUG if verbose else logging.INFO)


def leads_to_journal(file: int, stream: str) -> bool:
    """Whether a file is the one that $JOURNAL_STREAM names, as DEVICE:INODE: it is inherited where stderr leads elsewhere."""
    status = os.fstat(file) if stream else None
    return status is not None and stream == f"{status.st_dev}:{status.st_ino}"


def name_instance(name: str) -> None:
    """Have each record say of which merge it is."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, JournalHandler):
            handler.instance = name
