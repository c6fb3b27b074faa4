"""How messages word what came from outside: foreign text that can do nothing to a log, and sizes as people read them."""

LONG = 100  # characters of foreign text in a message


def shown(text: object) -> str:
    """Return foreign text as a message may show it: what cannot be printed is escaped, and too much is cut."""
    whole = str(text)
    cut = whole if len(whole) <= LONG else f"{whole[:LONG]}…"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in cut)


def size(nbytes: float) -> str:
    """Return a number of bytes as people read it."""
    for unit in ("B", "kB", "MB", "GB"):
        if nbytes < 1000:
            return f"{nbytes:.0f} B" if unit == "B" else f"{nbytes:.1f} {unit}"
        nbytes /= 1000
    return f"{nbytes:.1f} TB"
