"""The commands about what is kept: tags, and dropping what nothing keeps."""

from typing import Annotated

import typer

from ..state.errors import Usage
from . import answers_keeping as answers
from . import asking, completing
from .cli_options import ConfigOption, JsonOption, LongNameOption, NameOption, settings_of, show_as


def tag(
    context: typer.Context,
    called: Annotated[
        str | None,
        typer.Argument(metavar="NAME", help="The name; lists all tags if left out.", autocompletion=completing.tags),
    ] = None,
    version: Annotated[
        str | None,
        typer.Argument(help="7, v7, head~2 or another tag; the head if left out.", autocompletion=completing.versions),
    ] = None,
    delete: Annotated[bool, typer.Option("--delete", "-d", help="Take the name away.")] = False,
    force: Annotated[bool, typer.Option("--force", "-f", help="Move a name that another version has.")] = False,
    as_json: JsonOption = False,
    config: ConfigOption = None,
    name: NameOption = None,
) -> None:
    """Name a version. It keeps its files for as long as it has a name, and goes by it wherever VERSION may stand."""
    from .requests import Tag, Untag

    settings = settings_of(context, config, name)
    if called is None:
        if delete or force:
            raise Usage("which tag?", "the tags there are: mergd tag")
        tags = asking.tags(settings)
        show_as(tags, as_json, lambda: answers.tags(tags))
    elif delete:
        if version is not None:
            raise Usage("a tag is taken away by its name alone", "such as: mergd tag --delete NAME")
        gone = asking.ask(settings, Untag(name=called))
        show_as(gone, as_json, lambda: answers.untagged(gone))
    else:
        put = asking.ask(settings, Tag(name=called, version=version or "head", force=force))
        show_as(put, as_json, lambda: answers.tagged(put))


def gc(
    context: typer.Context,
    dry: Annotated[
        bool,
        typer.Option("--dry-run", "-n", help="Change nothing: show what is kept and why, as the configuration has it."),
    ] = False,
    as_json: JsonOption = False,
    config: ConfigOption = None,
    name: LongNameOption = None,
) -> None:
    """Drop the files that retention lets go, now. A daemon does it after each move and request, and each hour, anyway."""
    from .requests import Gc

    settings = settings_of(context, config, name)
    answer = asking.dropping(settings) if dry else asking.ask(settings, Gc())
    show_as(answer, as_json, lambda: answers.planned(answer) if dry else answers.dropped(answer))
