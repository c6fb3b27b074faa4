"""The commands about versions and the head: how it stands, what there is, and going back."""

from pathlib import Path
from typing import Annotated

import typer

from . import answers, asking, completing, display, learned
from .cli_options import ConfigOption, JsonOption, LongNameOption, NameOption, PlanOption, settings_of, show_as


def status(
    context: typer.Context,
    as_json: JsonOption = False,
    check: Annotated[bool, typer.Option("--check", help="Say nothing; exit 0 if all is well, else 1.")] = False,
    config: ConfigOption = None,
    name: NameOption = None,
) -> None:
    """The head, what runs and what waits, whether it is paused, the disk, the rule and the totals."""
    answer = asking.status(settings_of(context, config, name))
    if check:
        raise typer.Exit(0 if asking.is_well(answer) else 1)
    show_as(answer, as_json, lambda: answers.status(answer))


def log(
    context: typer.Context, as_json: JsonOption = False, config: ConfigOption = None, name: NameOption = None
) -> None:
    """The versions, newest first, as a small graph where history branches."""
    answer = asking.log(settings_of(context, config, name))
    show_as(answer, as_json, lambda: answers.log(answer))


def show(
    context: typer.Context,
    what: Annotated[
        str,
        typer.Argument(
            metavar="VERSION|CHECKPOINT",
            help="7, v7, head, head~2, a tag; or a checkpoint.",
            autocompletion=completing.versions_and_checkpoints,
        ),
    ],
    as_json: JsonOption = False,
    config: ConfigOption = None,
    name: NameOption = None,
) -> None:
    """One version: cause, totals, per-weight statistics, seconds by step. Or a checkpoint's story."""
    answer = asking.show(settings_of(context, config, name), what)
    show_as(answer, as_json, lambda: answers.shown(answer))


def card(
    context: typer.Context,
    version: Annotated[str, typer.Argument(help="7, v7, head, head~2, a tag.", autocompletion=completing.versions)],
    as_json: JsonOption = False,
    config: ConfigOption = None,
    name: NameOption = None,
) -> None:
    """The model card of a version, as its folder has it, and what was learned of it since: where the head went, damage."""
    answer = learned.card(settings_of(context, config, name), version)
    show_as(answer, as_json, lambda: answers.card(answer))


def rollback(
    context: typer.Context,
    version: Annotated[
        str | None,
        typer.Argument(
            help="7, v7, head~2, a tag; where the head was before if left out.", autocompletion=completing.versions
        ),
    ] = None,
    pause: Annotated[
        bool, typer.Option("--pause", help="And pause, so that nothing is folded until mergd resume.")
    ] = False,
    as_json: JsonOption = False,
    config: ConfigOption = None,
    name: NameOption = None,
) -> None:
    """Move the head to an earlier version. Nothing is rewritten; says which checkpoints that takes out."""
    from .requests import Rollback

    answer = asking.ask(settings_of(context, config, name), Rollback(version=version, pause=pause))
    show_as(answer, as_json, lambda: answers.rolled_back(answer))


def pause(
    context: typer.Context,
    why: Annotated[str, typer.Option(help="Kept, and shown by status.")] = "",
    config: ConfigOption = None,
    name: NameOption = None,
) -> None:
    """Stop moving the head, also over restarts; scanning and the commands that read go on."""
    from .requests import Pause

    asking.ask(settings_of(context, config, name), Pause(why=why))
    display.out.print("paused; to go on: mergd resume")


def resume(context: typer.Context, config: ConfigOption = None, name: NameOption = None) -> None:
    """Go on moving the head."""
    from .requests import Resume

    answer = asking.ask(settings_of(context, config, name), Resume())
    display.out.print("resumed" if answer["was_paused"] else "it was not paused")


def replay(
    context: typer.Context,
    version: Annotated[str, typer.Argument(help="7, v7, head~2.", autocompletion=completing.versions)],
    plan: PlanOption = False,
    as_json: JsonOption = False,
    config: ConfigOption = None,
    name: LongNameOption = None,
) -> None:
    """Make the files of a version once more, which retention dropped or a disk damaged: what made it is repeated.

    From its nearest ancestor whose files are there, and the sources of what was folded since. The bytes must be those
    that it had: else nothing is changed. The head stays where it is.
    """
    from .requests import Replay

    answer = asking.ask(settings_of(context, config, name), Replay(version=version, plan=plan))
    show_as(answer, as_json, lambda: answers.remade(answer))


def verify(
    context: typer.Context,
    version: Annotated[
        str | None,
        typer.Argument(help="7, v7, head, a tag; every kept version if left out.", autocompletion=completing.versions),
    ] = None,
    replay: Annotated[
        bool, typer.Option("--replay", help="And make it once more from its sources: the same bytes must come of it.")
    ] = False,
    as_json: JsonOption = False,
    config: ConfigOption = None,
    name: NameOption = None,
) -> None:
    """Read the files of a version again, and hold the database against the folders. Exit 74 if something is damaged.

    What is found is recorded: the head never moves to a damaged version. With --replay, without a version: of the head.
    """
    from .requests import Replay, Verify

    settings = settings_of(context, config, name)
    answer = asking.ask(settings, Verify(version=version))
    if replay and answer["sound"]:
        answer["replayed"] = asking.ask(settings, Replay(version=version or "head", check=True))
    show_as(answer, as_json, lambda: answers.verified(answer))
    if not answer["sound"]:
        raise typer.Exit(74)


def export(
    context: typer.Context,
    version: Annotated[str, typer.Argument(help="7, v7, head, head~2.", autocompletion=completing.versions)],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new folder, or an empty one.")],
    lora: Annotated[
        int | None, typer.Option("--lora", metavar="RANK", min=1, help="As one PEFT adapter of this rank.")
    ] = None,
    as_json: JsonOption = False,
    config: ConfigOption = None,
    name: NameOption = None,
) -> None:
    """Write a version's model folder, or its task vector as one adapter, to a folder of yours: whole or not at all."""
    from .progress import Progress

    settings = settings_of(context, config, name)
    with display.shown_progress() as show:
        if lora is None:
            from .exporting import export as export_model

            answer = export_model(settings, version, folder, Progress(show))
        else:
            from .adapting import export_adapter

            answer = export_adapter(settings, version, folder, lora, Progress(show))
    show_as(answer, as_json, lambda: answers.exported(answer))
