"""The words in which reasons say what to do: commands that a shell takes as they stand, whatever a name is made of."""

import shlex


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
