"""Makes docs/man/mergd.1 from the command line's own help: `python tests/man_page.py --write`."""

import sys
from collections.abc import Iterator
from inspect import cleandoc, unwrap
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from support.command_line import CLI, COMMANDS
from typer.core import TyperGroup

from mergd.state import errors

PATH = Path(__file__).resolve().parent.parent / "docs" / "man" / "mergd.1"
HEAD = """.\\" Made by `python tests/man_page.py --write`; a test compares.
.TH MERGD 1 "" mergd "User Commands"
.SH NAME
mergd \\- fold fine\\-tuned checkpoints of one base model into one running merged model
.SH SYNOPSIS
.B mergd
[\\fIOPTIONS\\fR] \\fICOMMAND\\fR [\\fIARGUMENTS\\fR]
"""
ENVIRONMENT = {
    "MERGD_CONFIG": "The configuration file, where neither --config nor --name names one.",
    "HF_TOKEN, HF_TOKEN_PATH": "The token that reads from the Hugging Face Hub, or the file that it lies in.",
    "CREDENTIALS_DIRECTORY": "Where systemd puts the service's credentials.",
}
FILES = {
    "/etc/mergd/NAME.toml": "The configuration of the merge NAME.",
    "STATE/models/current": "Leads to the merged model.",
    "STATE/status.json, STATE/log.jsonl": "The status and the newest versions, for everybody to read.",
}
SEE_ALSO = ".SH SEE ALSO\n.BR systemctl (1),\n.BR journalctl (1)\n"


def text() -> str:
    """Return docs/man/mergd.1."""
    parts = [HEAD, ".SH DESCRIPTION\n", paragraphs(CLI.help), ".SH OPTIONS\n", *options(CLI), ".SH COMMANDS\n"]
    for name, command in COMMANDS.items():
        parts += described(name, command)
    parts += [".SH EXIT STATUS\n", item("0", "Done."), *map(status_of, errors_by_code())]
    parts += [".SH ENVIRONMENT\n", *(item(*pair) for pair in ENVIRONMENT.items())]
    parts += [".SH FILES\n", *(item(*pair) for pair in FILES.items()), SEE_ALSO]
    return "".join(parts)


def described(name: str, command: Any) -> Iterator[str]:
    """Yield a command: how it is called, what it does, its arguments and options; and those beneath it."""
    if isinstance(command, TyperGroup):
        for inner, part in command.commands.items():
            yield from described(f"{name} {inner}", part)
        return
    arguments = [param for param in command.params if param.param_type_name == "argument"]
    words = " ".join(shown(param) for param in arguments)
    yield f".SS {roff(f'mergd {name} [OPTIONS] {words}'.strip())}\n" + paragraphs(command.help)
    for param in arguments:
        yield item(shown(param), param.help)
    yield from options(command)


def options(command: Any) -> Iterator[str]:
    """Yield the options of a command."""
    for param in command.params:
        if param.param_type_name == "option" and not param.hidden:
            takes = "" if param.is_flag else f" {metavar(param, command)}"
            yield item(", ".join([*param.opts, *param.secondary_opts]) + takes, param.help)


def shown(argument: Any) -> str:
    """Return an argument as a line of usage has it."""
    return metavar(argument) if argument.required else f"[{metavar(argument)}]"


def metavar(param: Any, command: Any = None) -> str:
    """Return what stands for a value: as the command says it, or else its choices, or its name."""
    kind = get_type_hints(unwrap(command.callback)).get(param.name) if command is not None else None
    choices = get_args(kind) if get_origin(kind) is Literal else ()
    return str(param.metavar or "|".join(choices) or param.name.upper())


def errors_by_code() -> list[type[errors.MergdError]]:
    """Return the errors by which commands end, one for each exit code."""
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.MergdError)]
    return sorted({kind.exit_code: kind for kind in reversed(kinds)}.values(), key=lambda kind: kind.exit_code)


def status_of(kind: type[errors.MergdError]) -> str:
    """Return an exit code with what it means."""
    return item(str(kind.exit_code), cleandoc(kind.__doc__ or "").splitlines()[0])


def item(term: str, meaning: str | None) -> str:
    """Return a term and, set in, what it means."""
    return f".TP\n.B {roff(term)}\n{roff(' '.join((meaning or '').split()))}\n"


def paragraphs(help_text: str | None) -> str:
    """Return a help text, each of its paragraphs filled anew."""
    blocks = cleandoc(help_text or "").split("\n\n")
    return "".join(f".PP\n{roff(' '.join(block.split()))}\n" for block in blocks)


def roff(plain: str) -> str:
    """Return a text as roff has it: nothing in it is taken for a request."""
    safe = plain.replace("\\", "\\e").replace("-", "\\-")
    return f"\\&{safe}" if safe.startswith((".", "'")) else safe


if __name__ == "__main__":
    if sys.argv[1:] == ["--write"]:
        PATH.parent.mkdir(exist_ok=True)
        PATH.write_text(text())
    else:
        sys.stdout.write(text())
