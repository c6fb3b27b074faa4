"""The command about the fold rules: which are installed, and what each would take of a base model."""

from typing import Annotated

import typer

from . import answers_rules as answers
from . import completing
from .cli_options import ConfigOption, JsonOption, LongNameOption, settings_if_any, show_as


def rules(
    context: typer.Context,
    called: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME", help="One rule in full; all of them if left out.", autocompletion=completing.rules
        ),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(metavar="FOLDER|org/name", help="Of which base model; the configuration's if left out."),
    ] = None,
    as_json: JsonOption = False,
    config: ConfigOption = None,
    name: LongNameOption = None,
) -> None:
    """The installed fold rules: what each does, keeps and asks for, and what a version by it takes of a base model.

    Reads headers alone, and needs no state. Without a base model, for matrices of three forms. Exit 78 if the rule that
    is asked for cannot be used.
    """
    from .asking_rules import rules as all_there_is  # which imports torch

    answer = all_there_is(settings_if_any(context, config, name), base, called)
    show_as(answer, as_json, lambda: answers.rule(answer) if called else answers.rules(answer))
    if called and answer["rules"][0]["error"]:
        raise typer.Exit(78)
