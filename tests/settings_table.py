"""Makes docs/settings.md from the settings' own descriptions: `python tests/settings_table.py --write`."""

import sys
from pathlib import Path
from typing import Any

from pydantic import ByteSize
from pydantic.fields import FieldInfo

from mergd.daemon.initialise import toml_value
from mergd.daemon.settings import keys
from mergd.daemon.settings_tables import UNITS, _seconds

PATH = Path(__file__).resolve().parent.parent / "docs" / "settings.md"
HEAD = """# Settings

One TOML file holds them; `mergd init` writes it, with every setting and its default. Made from the settings' own
descriptions by `python tests/settings_table.py --write`; a test compares.

"""
AFTER = """
A key with a point stands in a table, `norm` in `[limits]`; a command line takes it whole, as in `--set limits.norm=2`.
Durations are written `500ms`, `5s`, `10m`, `12h` or `7d`; a bare number is seconds. Sizes are written `256MB` or `2GiB`; a
bare number is bytes.

What is pinned at init cannot be changed for the life of a state: a configuration that differs from it ends with exit
code 78, and both values are named. All else is read at each start and, but
for `watch`, `source` and `state`, at each SIGHUP.
"""


def text() -> str:
    """Return docs/settings.md."""
    rows = [f"| `{name}` | {default(field)} | {field.description} |" for name, field in keys().items()]
    table = "\n".join(["| setting | default | what it is |", "|---|---|---|", *rows])
    return HEAD + table + "\n" + AFTER


def default(field: FieldInfo) -> str:
    """Return a default as one writes it in the file."""
    if field.is_required():
        return "none: it must be given"
    value = field.get_default(call_default_factory=True)
    if value == {}:
        return "the rule's own"
    return f"`{written(field, value)}`"


def written(field: FieldInfo, value: Any) -> str:
    """Return a value as TOML, with the largest unit that leaves a whole number."""
    if field.annotation is ByteSize and value == 0:
        return "0"
    if field.annotation is ByteSize:
        return toml_value(_in_units(value, {"B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9}))
    if any(getattr(part, "func", None) is _seconds for part in field.metadata):
        return toml_value(_in_units(value, UNITS))
    return toml_value(value)


def _in_units(value: float, units: dict[str, float]) -> str:
    whole = {unit: value / size for unit, size in units.items() if value >= size and value % size == 0}
    unit = max(whole, key=lambda unit: units[unit])
    return f"{whole[unit]:g}{unit}"


if __name__ == "__main__":
    if sys.argv[1:] == ["--write"]:
        PATH.write_text(text())
    else:
        sys.stdout.write(text())
