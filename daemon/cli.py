"""The command line: reads what a person typed, has it done, and shows the answer. No decision is made here."""

import logging
import os
import sys
from importlib.metadata import version as installed
from typing import Annotated, NoReturn

import typer

from ..state.disk_errors import meaning
from ..state.errors import Abandoned, MergdError, NotPermitted, Usage
from . import display
from .cli_checkpoints import approve, check, fold, list_, refuse, remove, retry
from .cli_keeping import gc, tag
from .cli_options import ConfigOption, NameOption
from .cli_reading import publish, remerge
from .cli_rules import rules
from .cli_service import init, rebuild, run
from .cli_units import service
from .cli_versions import card, export, log, pause, replay, resume, rollback, show, status, verify
from .logs import log_to_stderr
from .machine import settle_process

app = typer.Typer(
    name="mergd",
    help="""Fold fine-tuned checkpoints of one base model, as they arrive, into one running merged model.

    mergd init once, then mergd run (or systemd does). Drop checkpoints into the watched folder; the merged model is
    STATE/models/current. When a checkpoint made it worse: mergd rollback.""",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _say_version(asked: bool) -> None:
    if asked:
        print(f"mergd {installed('mergd')}")
        raise typer.Exit


@app.callback()
def _everywhere(
    context: typer.Context,
    config: ConfigOption = None,
    name: NameOption = None,
    version: Annotated[
        bool, typer.Option("--version", callback=_say_version, is_eager=True, help="Say which mergd this is.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log more, and show tracebacks.")] = False,
) -> None:
    context.obj = {"config": config, "name": name}
    log_to_stderr(verbose)


for command in (
    init,
    run,
    check,
    fold,
    list_,
    approve,
    refuse,
    retry,
    status,
    log,
    show,
    card,
    rollback,
    pause,
    resume,
    remove,
    replay,
    publish,
    remerge,
    export,
    tag,
    gc,
    verify,
    rebuild,
    rules,
):
    app.command(command.__name__.rstrip("_"))(command)
app.add_typer(service, name="service")


def main() -> None:
    """Run the command line; every error ends in one or two lines and its exit code."""
    settle_process()
    try:
        sys.exit(app(standalone_mode=False) or 0)
    except MergdError as error:
        _end(error)
    except PermissionError as error:
        _end(NotPermitted(str(error), "run as the state's owner"))
    except (Abandoned, KeyboardInterrupt, typer.Abort):
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Exception as error:  # noqa: BLE001 - nobody is shown a traceback unasked
        _end_otherwise(error)


def _end_otherwise(error: Exception) -> NoReturn:
    """End with what the disk said, with typer's own error (a wrong option or argument), or with one that nobody foresaw."""
    if isinstance(known := meaning(error), MergdError):
        _end(known)
    if hasattr(error, "format_message"):
        if not error.format_message():  # the help was shown
            sys.exit(Usage.exit_code)
        _end(Usage(error.format_message(), "mergd --help, or mergd COMMAND --help, says what there is"))
    logging.getLogger(__name__).debug("a traceback, as -v asks for", exc_info=error)
    _end(MergdError(f"unforeseen: {type(error).__name__}: {error}", "please report it, with what mergd -v says"))


def _end(error: MergdError) -> NoReturn:
    display.failed(error)
    sys.exit(error.exit_code)
