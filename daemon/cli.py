"""The command line: reads what a person typed, has it done, and shows the answer. No decision is made here."""

import json
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import typer

from ..state.errors import Abandoned, MergdError, NotPermitted, Usage
from . import answers, asking, display
from .logs import log_to_stderr
from .machine import settle_memory
from .settings import Settings, find_config, new_config, read_settings, validate, values_of

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

ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        "-c",
        metavar="PATH",
        help="The configuration file (else -n, $MERGD_CONFIG, ./mergd.toml, /etc/mergd/mergd.toml).",
    ),
]
NameOption = Annotated[str | None, typer.Option("-n", "--name", metavar="NAME", help="Use /etc/mergd/NAME.toml.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]


@app.callback()
def _everywhere(
    context: typer.Context,
    config: ConfigOption = None,
    name: NameOption = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log more, and show tracebacks.")] = False,
) -> None:
    context.obj = {"config": config, "name": name}
    log_to_stderr(verbose)


def _settings(context: typer.Context, config: Path | None, name: str | None) -> Settings:
    return read_settings(_config_path(context, config, name))


def _config_path(context: typer.Context, config: Path | None, name: str | None) -> Path:
    return find_config(config or context.obj["config"], name or context.obj["name"])


# ------------------------------------------------------------------------------------------------------- the service


@app.command()
def init(
    context: typer.Context,
    base: Annotated[str, typer.Option(help="The base model: a folder, a .safetensors file or org/name@revision.")],
    watch: Annotated[Path, typer.Option(help="The directory that checkpoints will be dropped into.")],
    state: Annotated[Path, typer.Option(help="A new directory for history, slots and published models.")],
    rule: Annotated[str, typer.Option(help="The fold rule.")] = "opcm",
    existing: Annotated[
        Literal["hold", "fold", "ignore"], typer.Option(help="What to do with what lies in the directory already.")
    ] = "hold",
    values: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Another setting, or a parameter of the rule: --set alpha=0.4."
        ),
    ] = None,
    config: ConfigOption = None,
    name: NameOption = None,
) -> None:
    """Create a state and its configuration, and say what a version will cost on disk. Overwrites nothing."""
    from .initialise import initialise
    from .progress import Progress

    path = new_config(config or context.obj["config"], name or context.obj["name"])
    base_model = str(Path(base).expanduser().resolve()) if Path(base).expanduser().exists() else base
    chosen = {"base_model": base_model, "watch": watch, "state": state, "rule": rule, "existing": existing}
    more = values_of(values or [])
    settings = validate({"threads": len(os.sched_getaffinity(0))} | more | chosen, "the command line")
    with display.shown_progress() as show:
        found = initialise(settings, path, Progress(show))
    answers.initialised(settings, path, found)


@app.command()
def run(
    context: typer.Context,
    once: Annotated[bool, typer.Option("--once", help="Fold all that is ready, then exit.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="With --once: exit 65 if a checkpoint was refused.")] = False,
    config: ConfigOption = None,
    name: NameOption = None,
) -> None:
    """Watch the directory and fold what arrives, until stopped. Exit 0 also when a checkpoint was refused."""
    path = _config_path(context, config, name)
    settings = read_settings(path)
    asking.become_owner(settings)
    if not once:
        from .service import Service

        Service(settings, lambda: read_settings(path)).run()
    elif asking.run_once(settings) and strict:
        raise typer.Exit(65)


# ------------------------------------------------------------------------------------------------------- checkpoints


@app.command()
def check(
    context: typer.Context,
    path: Annotated[Path | None, typer.Argument(help="A checkpoint.")] = None,
    as_json: JsonOption = False,
    config: ConfigOption = None,
    name: NameOption = None,
) -> None:
    """Would this checkpoint be admitted, and why not? Exit 0 yes, 65 refused, 75 held or not complete.

    Reads headers alone: a number that is not finite shows only when it is folded.
    """
    if path is None:
        raise Usage("check what? Give the PATH of a checkpoint", "to check the state's own files: mergd verify")
    answer = asking.check(_settings(context, config, name), path)
    _print(answer, as_json, lambda: answers.verdict(answer))
    raise typer.Exit({"admitted": 0, "refused": 65}.get(answer["decision"], 75))


@app.command()
def fold(
    context: typer.Context,
    checkpoints: Annotated[list[str], typer.Argument(metavar="PATH...", help="Paths, or names that mergd list shows.")],
    again: Annotated[bool, typer.Option("--again", help="Also what was folded before and then rolled away.")] = False,
    as_json: JsonOption = False,
    config: ConfigOption = None,
    name: NameOption = None,
) -> None:
    """Fold these now, in this order, before all others. Also takes what is held or was refused."""
    from .requests import Fold

    request = Fold(checkpoints=tuple(_absolute_if_path(text) for text in checkpoints), again=again)
    answer = asking.ask(_settings(context, config, name), request)
    _print(answer, as_json, lambda: answers.folded(answer))
    if any(item["state"] != "folded" for item in answer["checkpoints"]):
        raise typer.Exit(65)


@app.command("list")
def list_(
    context: typer.Context, as_json: JsonOption = False, config: ConfigOption = None, name: NameOption = None
) -> None:
    """Every checkpoint: its state, since when, the reasons, and what it waits for."""
    rows = asking.checkpoints(_settings(context, config, name))
    _print(rows, as_json, lambda: answers.checkpoints(rows))


# ---------------------------------------------------------------------------------------------------------- versions


@app.command()
def status(
    context: typer.Context,
    as_json: JsonOption = False,
    check: Annotated[bool, typer.Option("--check", help="Say nothing; exit 0 if all is well, else 1.")] = False,
    config: ConfigOption = None,
    name: NameOption = None,
) -> None:
    """The head, what runs and what waits, whether it is paused, the disk, the rule and the totals."""
    answer = asking.status(_settings(context, config, name))
    if check:
        raise typer.Exit(0 if asking.is_well(answer) else 1)
    _print(answer, as_json, lambda: answers.status(answer))


@app.command()
def log(
    context: typer.Context, as_json: JsonOption = False, config: ConfigOption = None, name: NameOption = None
) -> None:
    """The versions, newest first, as a small graph where history branches."""
    answer = asking.log(_settings(context, config, name))
    _print(answer, as_json, lambda: answers.log(answer))


@app.command()
def show(
    context: typer.Context,
    what: Annotated[str, typer.Argument(metavar="VERSION|CHECKPOINT", help="7, v7, head, head~2; or a checkpoint.")],
    as_json: JsonOption = False,
    config: ConfigOption = None,
    name: NameOption = None,
) -> None:
    """One version: cause, totals, per-weight statistics, seconds by step. Or a checkpoint's story."""
    answer = asking.show(_settings(context, config, name), what)
    _print(answer, as_json, lambda: answers.shown(answer))


@app.command()
def rollback(
    context: typer.Context,
    version: Annotated[str | None, typer.Argument(help="7, v7, head~2; where the head was before if left out.")] = None,
    pause: Annotated[
        bool, typer.Option("--pause", help="And pause, so that nothing is folded until mergd resume.")
    ] = False,
    as_json: JsonOption = False,
    config: ConfigOption = None,
    name: NameOption = None,
) -> None:
    """Move the head to an earlier version. Nothing is rewritten; says which checkpoints that takes out."""
    from .requests import Rollback

    answer = asking.ask(_settings(context, config, name), Rollback(version=version, pause=pause))
    _print(answer, as_json, lambda: answers.rolled_back(answer))


@app.command()
def pause(
    context: typer.Context,
    why: Annotated[str, typer.Option(help="Kept, and shown by status.")] = "",
    config: ConfigOption = None,
    name: NameOption = None,
) -> None:
    """Stop moving the head, also over restarts; scanning and the commands that read go on."""
    from .requests import Pause

    asking.ask(_settings(context, config, name), Pause(why=why))
    display.out.print("paused; to go on: mergd resume")


@app.command()
def resume(context: typer.Context, config: ConfigOption = None, name: NameOption = None) -> None:
    """Go on moving the head."""
    from .requests import Resume

    answer = asking.ask(_settings(context, config, name), Resume())
    display.out.print("resumed" if answer["was_paused"] else "it was not paused")


@app.command()
def verify(
    context: typer.Context,
    version: Annotated[str | None, typer.Argument(help="7, v7, head; every kept version if left out.")] = None,
    config: ConfigOption = None,
    name: NameOption = None,
) -> None:
    """Read the files of a version again and compare them with its manifest. Exit 74 if one is damaged."""
    damaged = asking.verify(_settings(context, config, name), version)
    for file in damaged:
        display.err.print(f"damaged: {display.safe(file)}")
    if damaged:
        raise typer.Exit(74)
    display.out.print("all files are as they were written")


# --------------------------------------------------------------------------------------------------------- the frame


def _print(value: Any, as_json: bool, show: Callable[[], None]) -> None:
    if as_json:
        sys.stdout.write(json.dumps(value, indent=1) + "\n")
    else:
        show()


def _absolute_if_path(text: str) -> str:
    return os.path.abspath(text) if os.path.lexists(text) else text


def main() -> None:
    """Run the command line; every error ends in one or two lines and its exit code."""
    settle_memory()
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
    """End with typer's own error (a wrong option or argument), or with one that nobody foresaw."""
    if hasattr(error, "format_message"):
        if not error.format_message():  # the help was shown
            sys.exit(Usage.exit_code)
        _end(Usage(error.format_message(), "mergd --help, or mergd COMMAND --help, says what there is"))
    if logging.getLogger("mergd").level == logging.DEBUG:
        raise error
    _end(MergdError(f"unforeseen: {type(error).__name__}: {error}", "please report it, with what mergd -v says"))


def _end(error: MergdError) -> NoReturn:
    display.failed(error)
    sys.exit(error.exit_code)
