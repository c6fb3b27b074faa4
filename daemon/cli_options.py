"""What the commands of the command line share: their common options, the settings they lead to, and how answers are printed."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from ..state.errors import Misconfigured
from .configuration import find_config, read_settings
from .settings import Settings

ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        "-c",
        metavar="PATH",
        help="The configuration file (else --name, $MERGD_CONFIG, ./mergd.toml, /etc/mergd/mergd.toml).",
    ),
]
NameOption = Annotated[str | None, typer.Option("-n", "--name", metavar="NAME", help="Use /etc/mergd/NAME.toml.")]
LongNameOption = Annotated[str | None, typer.Option("--name", metavar="NAME", help="Use /etc/mergd/NAME.toml.")]
PlanOption = Annotated[bool, typer.Option("--dry-run", "-n", help="Only say what it would take; change nothing.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]


def settings_of(context: typer.Context, config: Path | None, name: str | None) -> Settings:
    """Return the settings that the options lead to."""
    return read_settings(config_path(context, config, name))


def settings_if_any(context: typer.Context, config: Path | None, name: str | None) -> Settings | None:
    """Return the settings that the options lead to; None where nothing names any and none are where they usually are."""
    named = (config, name, *context.obj.values(), os.environ.get("MERGD_CONFIG"))
    try:
        path = config_path(context, config, name)
    except Misconfigured:
        if any(named):
            raise
        return None
    return read_settings(path)


def config_path(context: typer.Context, config: Path | None, name: str | None) -> Path:
    """Return the configuration file; the options may also stand before the command."""
    return find_config(config or context.obj["config"], name or context.obj["name"])


def show_as(value: Any, as_json: bool, show: Callable[[], None]) -> None:
    """Print an answer for scripts, or for people."""
    if as_json:
        sys.stdout.write(json.dumps(value, indent=1) + "\n")
    else:
        show()


def absolute_if_path(text: str) -> str:
    """Return a path as the daemon, which runs elsewhere, understands it; a name as it is."""
    return os.path.abspath(text) if os.path.lexists(text) else text
