"""The commands about checkpoints: look at one before it is dropped, fold it now, and decide on it."""

from pathlib import Path
from typing import Annotated

import typer

from ..state.errors import Usage
from . import answers, asking, completing, display
from .cli_options import (
    ConfigOption,
    JsonOption,
    LongNameOption,
    NameOption,
    PlanOption,
    absolute_if_path,
    settings_of,
    show_as,
)

CheckpointArgument = Annotated[str, typer.Argument(metavar="CHECKPOINT", help="A name, a path, or six digits.")]
FoldedArgument = Annotated[
    str,
    typer.Argument(metavar="CHECKPOINT", help="A name, a path, or six digits.", autocompletion=completing.checkpoints),
]


def check(
    context: typer.Context,
    path: Annotated[Path | None, typer.Argument(help="A checkpoint.")] = None,
    deep: Annotated[
        bool, typer.Option("--deep", help="Read all of it, and have the built-in gate judge it too.")
    ] = False,
    as_json: JsonOption = False,
    config: ConfigOption = None,
    name: NameOption = None,
) -> None:
    """Would this checkpoint be folded, and why not? Exit 0 yes, 65 refused, 75 held or not complete.

    Reads headers alone unless told to look deep; writes nothing. Also asks a running daemon whether it can read the
    files: exit 77 if not.
    """
    from .checking import check as verdict_on
    from .progress import Progress

    if path is None:
        raise Usage("check what? Give the PATH of a checkpoint", "to check the state's own files: mergd verify")
    with display.shown_progress() as shown:
        answer = verdict_on(settings_of(context, config, name), path, deep, Progress(shown))
    show_as(answer, as_json, lambda: answers.verdict(answer, deep))
    if answer["daemon"] and answer["daemon"]["cannot_read"]:
        raise typer.Exit(77)
    raise typer.Exit({"admitted": 0, "known": 0, "refused": 65}.get(answer["decision"], 75))


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

    request = Fold(checkpoints=tuple(absolute_if_path(text) for text in checkpoints), again=again)
    answer = asking.ask(settings_of(context, config, name), request)
    show_as(answer, as_json, lambda: answers.folded(answer))
    if any(item["state"] != "folded" for item in answer["checkpoints"]):
        raise typer.Exit(65)


def list_(
    context: typer.Context, as_json: JsonOption = False, config: ConfigOption = None, name: NameOption = None
) -> None:
    """Every checkpoint: its state, since when, the reasons, and what it waits for."""
    rows = asking.checkpoints(settings_of(context, config, name))
    show_as(rows, as_json, lambda: answers.checkpoints(rows))


def approve(
    context: typer.Context,
    checkpoints: Annotated[list[str], typer.Argument(metavar="CHECKPOINT...", help="Held ones, as mergd list shows.")],
    as_json: JsonOption = False,
    config: ConfigOption = None,
    name: NameOption = None,
) -> None:
    """Fold these although they are held: lifts the reasons that they have now, for this content.

    Another reason that shows when one is folded holds it again.
    """
    from .requests import Approve

    request = Approve(checkpoints=tuple(absolute_if_path(text) for text in checkpoints))
    answer = asking.ask(settings_of(context, config, name), request)
    show_as(answer, as_json, lambda: answers.approved(answer))


def refuse(
    context: typer.Context,
    checkpoint: CheckpointArgument,
    why: Annotated[str, typer.Option(help="Kept, and shown by mergd list.")],
    as_json: JsonOption = False,
    config: ConfigOption = None,
    name: NameOption = None,
) -> None:
    """Refuse a checkpoint that is not folded yet, also while it is being folded."""
    from .requests import Refuse

    if not why.strip():
        raise Usage("refused for what? --why is empty", "such as: mergd refuse CHECKPOINT --why 'trained on test data'")
    request = Refuse(checkpoint=absolute_if_path(checkpoint), why=why)
    answer = asking.ask(settings_of(context, config, name), request)
    show_as(answer, as_json, lambda: answers.refused(answer))


def retry(
    context: typer.Context,
    checkpoint: CheckpointArgument,
    as_json: JsonOption = False,
    config: ConfigOption = None,
    name: NameOption = None,
) -> None:
    """Take a refusal back, by mergd or by a person: the checkpoint is looked at again from the start."""
    from .requests import Retry

    answer = asking.ask(settings_of(context, config, name), Retry(checkpoint=absolute_if_path(checkpoint)))
    show_as(answer, as_json, lambda: answers.retried(answer))


def remove(
    context: typer.Context,
    checkpoint: FoldedArgument,
    exact: Annotated[
        bool, typer.Option("--exact", help="Fold all others again, also where subtraction would do: the same bytes.")
    ] = False,
    plan: PlanOption = False,
    as_json: JsonOption = False,
    config: ConfigOption = None,
    name: LongNameOption = None,
) -> None:
    """Your files stay: makes a version of the model without this checkpoint, and moves the head there.

    By subtraction where the rule keeps nothing but sums, else by folding those after it again, from their places or
    from the archive. Says first what it will take, and changes nothing if it cannot be done. It goes on in the daemon
    when this command is interrupted; the model that is served stays until it is done.
    """
    from .requests import Remove

    request = Remove(checkpoint=absolute_if_path(checkpoint), exact=exact, plan=plan)
    answer = asking.ask(settings_of(context, config, name), request)
    show_as(answer, as_json, lambda: answers.remade(answer))
