"""The commands about how a version is read out: by another rule, at another scale, or merged anew from its sources."""

from math import isfinite, nan
from typing import Annotated, Any

import typer

from ..state.errors import Usage
from . import answers, asking, completing
from .cli_options import ConfigOption, JsonOption, LongNameOption, PlanOption, settings_of, show_as
from .configuration import values_of

RuleOption = Annotated[
    str | None,
    typer.Option("--rule", metavar="RULE", help="By this rule; else by the head's.", autocompletion=completing.rules),
]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A parameter of the rule: --set lambda=0.4.")
]
ScaleOption = Annotated[
    str | None,
    typer.Option(
        "--scale", metavar="SCALE", help="A number, mean-norm, or rule for the rule's own; else as at the head."
    ),
]
LinesOption = Annotated[
    tuple[float, float] | None,
    typer.Option("--lines", metavar="ALPHA BETA", help="LiNeS: times ALPHA + BETA x depth, from 0 to 1."),
]


def publish(
    context: typer.Context,
    rule: RuleOption = None,
    parameters: SetOption = None,
    scale: ScaleOption = None,
    lines: LinesOption = None,
    plan: PlanOption = False,
    as_json: JsonOption = False,
    config: ConfigOption = None,
    name: LongNameOption = None,
) -> None:
    """Read what is kept out by another rule or at another scale: a version like any other, without folding anything.

    Whatever the rule reads must be kept, of every weight: mergd rules says what each one does, and the setting also_keep
    keeps more. The next checkpoints are folded onto it, and are read out so too. mergd rollback leads back.
    """
    from .requests import Publish

    request = Publish(**_reading(rule, parameters, scale, lines), plan=plan)
    answer = asking.ask(settings_of(context, config, name), request)
    show_as(answer, as_json, lambda: answers.remade(answer))


def remerge(
    context: typer.Context,
    rule: RuleOption = None,
    parameters: SetOption = None,
    scale: ScaleOption = None,
    lines: LinesOption = None,
    plan: PlanOption = False,
    as_json: JsonOption = False,
    config: ConfigOption = None,
    name: LongNameOption = None,
) -> None:
    """Merge the model's checkpoints anew, by any rule, from their sources: a version like any other.

    Those whose sources are gone are left out, and named. By a fold rule, the next checkpoints are folded onto it by that
    rule: so a merge changes its rule. A rule for re-merges alone keeps nothing: the statistics of now are made anew beside
    it, and the next checkpoint is read out by them.
    """
    from .requests import Remerge

    request = Remerge(**_reading(rule, parameters, scale, lines), plan=plan)
    answer = asking.ask(settings_of(context, config, name), request)
    show_as(answer, as_json, lambda: answers.remade(answer))


def _reading(
    rule: str | None, parameters: list[str] | None, scale: str | None, lines: tuple[float, float] | None
) -> dict[str, Any]:
    """Return the fields of a request from the options."""
    if not (rule or parameters or scale or lines):
        raise Usage("how is it to be read?", "give --rule, --set, --scale or --lines")
    if lines and not all(map(isfinite, lines)):
        raise Usage(f"{lines[0]} {lines[1]} are no factors", "two finite numbers")
    values = values_of(parameters or [])
    others = sorted(values.keys() - {"parameters"})
    if others:
        raise Usage(f"{others[0]} is a setting, no parameter of a rule", "settings are in the configuration")
    return {
        "rule": rule,
        "parameters": values["parameters"],
        "scale": _scale(scale),
        "lines": {"alpha": lines[0], "beta": lines[1]} if lines else None,
    }


def _scale(text: str | None) -> str | float | None:
    if text is None or text in ("rule", "mean-norm"):
        return text
    try:
        number = float(text)
    except ValueError:
        number = nan
    if not isfinite(number):
        raise Usage(f"{text!r} is no scale", "a number, mean-norm, or rule")
    return number
