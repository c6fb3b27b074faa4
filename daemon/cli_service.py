"""The commands that make a merge and run it."""

import os
from pathlib import Path
from typing import Annotated, Literal

import typer

from . import answers, asking, display
from .cli_options import ConfigOption, JsonOption, NameOption, config_path, settings_of, show_as
from .configuration import new_config, read_settings, values_of
from .logs import name_instance
from .settings import validate


def init(
    context: typer.Context,
    base: Annotated[str, typer.Option(help="The base model: a folder, a .safetensors file or org/name@revision.")],
    state: Annotated[Path, typer.Option(help="A new directory for history, slots and published models.")],
    watch: Annotated[Path | None, typer.Option(help="The directory that checkpoints will be dropped into.")] = None,
    hub: Annotated[
        str, typer.Option(metavar="NAMESPACE", help="The user or organisation of the Hugging Face Hub to watch.")
    ] = "",
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
    chosen = {"base_model": base_model, "state": state, "rule": rule, "existing": existing}
    more = values_of(values or [])
    if watch is not None:
        chosen["watch"] = watch
    if hub:
        more["hub"] = more.get("hub", {}) | {"namespace": hub}
    settings = validate({"threads": len(os.sched_getaffinity(0))} | chosen | more, "the command line")
    with display.shown_progress() as show:
        found = initialise(settings, path, Progress(show))
    answers.initialised(settings, path, found)


def run(
    context: typer.Context,
    once: Annotated[bool, typer.Option("--once", help="Fold all that is ready, then exit.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="With --once: exit 65 if a checkpoint was refused.")] = False,
    config: ConfigOption = None,
    name: NameOption = None,
) -> None:
    """Watch the directory and fold what arrives, until stopped. Exit 0 also when a checkpoint was refused."""
    path = config_path(context, config, name)
    settings = read_settings(path)
    name_instance(path.stem)
    asking.become_owner(settings)
    if not once:
        from .service import Service

        Service(settings, lambda: read_settings(path), path.stem).run()
    elif asking.run_once(settings, path.stem) and strict:
        raise typer.Exit(65)


def rebuild(
    context: typer.Context,
    force: Annotated[
        bool, typer.Option("--force", help="Also where the database, or a copy of it, is well; it is moved aside.")
    ] = False,
    as_json: JsonOption = False,
    config: ConfigOption = None,
    name: NameOption = None,
) -> None:
    """Make a lost or broken database again from the versions' manifests, and say what they cannot bring back.

    A broken database is moved to STATE/backups, never deleted.
    """
    from .progress import Progress
    from .rebuilding import rebuild as do

    settings = settings_of(context, config, name)
    asking.become_owner(settings)
    with display.shown_progress() as show:
        answer = do(settings, force, Progress(show))
    show_as(answer, as_json, lambda: answers.rebuilt(answer))
