"""Logging to stderr, one line each, with the levels that journald reads; a name with a newline adds no line."""

import logging
import os
import sys

JOURNALD = {"DEBUG": 7, "INFO": 6, "WARNING": 4, "ERROR": 3, "CRITICAL": 2}


class _Lines(logging.Formatter):
    def __init__(self, journald: bool) -> None:
        super().__init__("%(message)s" if journald else "%(asctime)s %(levelname)-7s %(message)s")
        self._journald = journald

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        lines = [_printable(line) for line in (text.split("\n") if record.exc_info else [text])]
        mark = f"<{JOURNALD[record.levelname]}>" if self._journald else ""
        return "\n".join(mark + line for line in lines)


def _printable(line: str) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)


def log_to_stderr(verbose: bool) -> None:
    """Send mergd's log to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Lines(journald="JOURNAL_STREAM" in os.environ))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("mergd").setLevel(logging.DEBUG if verbose else logging.INFO)
