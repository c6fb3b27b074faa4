"""How messages word things: foreign text that can do nothing to a log, sizes as people read them, commands for a shell."""

import shlex

LONG = 100  # characters of foreign text in a message
MOST = 4000  # characters of any text that is kept or logged: room for two of the longest paths


def shown(text: object) -> str:
    """Return foreign text as a message may show it: what cannot be printed is escaped, and too much is cut."""
    whole = str(text)
    cut = whole if len(whole) <= LONG else f"{whole[:LONG]}…"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in cut)


def cut(text: str) -> str:
    """Return a text that fills neither a log nor the history, whoever gave it."""
    return text if len(text) <= MOST else f"{text[: MOST - 1]}…"


def size(nbytes: float) -> str:
    """Return a number of bytes as people read it."""
    for unit in ("B", "kB", "MB", "GB"):
        if nbytes < 1000:
            return f"{nbytes:.0f} B" if unit == "B" else f"{nbytes:.1f} {unit}"
        nbytes /= 1000
    return f"{nbytes:.1f} TB"


def quoted(text: str) -> str:
    """Return a word of a command line for a shell; what cannot be printed is written as $'...' has it."""
    if text.isprintable():
        return shlex.quote(text)
    return "$'" + "".join(c if c.isprintable() and c not in "'\\" else _escape(c) for c in text) + "'"


def _escape(c: str) -> str:
    return f"\\u{ord(c):04x}" if ord(c) < 0x10000 else f"\\U{ord(c):08x}"


def decide(place: str) -> str:
    """Return the next step for a checkpoint that is held: a person decides."""
    return f"to fold it all the same: mergd approve {quoted(place)}; else: mergd refuse {quoted(place)} --why TEXT"
