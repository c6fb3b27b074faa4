"""The command line as typer knows it, to hold against it the commands that texts show."""

import re
import shlex

import typer
import typer.main

from mergd.daemon.cli import app

CLI = typer.main.get_command(app)
CONTEXT = typer.Context(CLI, info_name="mergd", **CLI.context_settings)
assert isinstance(CLI, typer.core.TyperGroup)
COMMANDS = CLI.commands


def check_command(line: str) -> None:
    """Parse one command line after the word `mergd`; what it shows as optional or repeated is taken once."""
    words = shlex.split(re.split(r"\s(?:#|&&|\||;)\s|;$", line)[0].translate({ord(c): "" for c in "[]…"}))
    words = [word.split("|")[0].rstrip(",").removesuffix("...") for word in words]
    _, rest, _ = CLI.make_parser(CONTEXT).parse_args([word for word in words if word])
    if not rest:
        return
    assert rest[0] in COMMANDS, f"there is no command {rest[0]!r}"
    command = COMMANDS[rest[0]]
    if isinstance(command, typer.core.TyperGroup) and len(rest) > 1:
        assert rest[1] in command.commands, f"there is no command {rest[0]} {rest[1]!r}"
        command, rest = command.commands[rest[1]], rest[1:]
    context = typer.Context(command, parent=CONTEXT, info_name=rest[0])
    _, left, _ = command.make_parser(context).parse_args(rest[1:])
    assert not left, f"{left} is too much"
