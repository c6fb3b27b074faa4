"""What people call things: VERSION is 7, v7, `head`, `head~2` or a tag; CHECKPOINT a name, a path or six digits of its digest."""

import re
from collections.abc import Iterable
from pathlib import Path

from ..state.checkpoints import Checkpoints
from ..state.errors import Usage
from ..state.history import History
from ..state.records import Checkpoint, Version

DIGITS = 6  # of a digest, at least
ELSEWHERE = "://"  # in a place that is no path on this disk


def find_version(history: History, text: str) -> Version:
    """Return the version that `text` names. Raises Usage, with what there is, if none."""
    if match := re.fullmatch(r"head(?:~(\d+))?", text):
        head = history.head()
        line = history.lineage(head.number) if head else []
        back = int(match[1] or 0)
        if back < len(line):
            return line[back]
        raise Usage(f"{text} is before the first version", f"the head has {max(len(line) - 1, 0)} ancestors")
    tag = history.tags.get(text)
    number = int(text.removeprefix("v")) if re.fullmatch(r"v?\d{1,9}", text) else tag.version if tag else None
    version = history.version(number) if number is not None else None
    if version is None:
        hint = "versions are written 7, v7, head, head~2, or as their tag; see: mergd log"
        raise Usage(f"there is no version {text!r}", hint)
    return version


def find_checkpoint(history: History, text: str) -> Checkpoint:
    """Return the checkpoint that `text` names. Raises Usage, listing the matches, if none or several."""
    rows = history.checkpoints
    place = text if ELSEWHERE in text else str(absolute(text))
    found = _newest(rows.placed(place)) or _newest(_named(text, rows))
    if not found and re.fullmatch(rf"[0-9a-f]{{{DIGITS},64}}", text):
        found = rows.with_digest(text)
    if len(found) > 1:
        listed = ", ".join(f"{row.name} ({row.place})" for row in found)
        raise Usage(f"{text!r} names {len(found)} checkpoints", f"say which: {listed}")
    if not found:
        raise Usage(f"no checkpoint is called {text!r}", "see: mergd list")
    return found[0]


def _named(text: str, rows: Checkpoints) -> list[Checkpoint]:
    return [row for row in rows.whose_name_has(text) if text in (row.name, Path(row.name).stem)]


def _newest(rows: Iterable[Checkpoint]) -> list[Checkpoint]:
    """Return the newest row of each place."""
    return list({row.place: row for row in rows}.values())


def absolute(text: str | Path) -> Path:
    """Return a place as the history records it: absolute, a link in its last part not followed."""
    try:
        path = Path(text).expanduser()
        return path.parent.resolve() / path.name
    except (OSError, RuntimeError, ValueError) as error:
        raise Usage(f"{str(text)[:80]!r} is no path: {error}") from None
