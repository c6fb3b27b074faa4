"""The kinds and the sets of tasks, by name. What is fetched or trained for one is imported when that one is asked for."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from .kinds import Kind
from .recipe import REPORTED, Draw, Set, draws

HERE = Path(__file__).resolve().parent
DEMO = HERE.parent / "demo"
KINDS: dict[str, tuple[str, str, tuple[Path, ...]]] = {  # name: module, class, and where its sources lie
    "digits": ("digits", "Digits", (HERE / "digits.py", DEMO / "digit_tasks.py", DEMO / "digit_training.py")),
    "vision": ("vision.kind", "Vision", (HERE / "vision",)),
    "text": ("text.kind", "Text", (HERE / "text",)),
}


@cache
def kind_of(name: str) -> Kind:
    """Return the kind of this name."""
    module, class_name, _ = KINDS[name]
    made: Kind = getattr(import_module(f"quality.{module}"), class_name)()
    return made


def sources_of(kind: str) -> list[Path]:
    """Return the files that say how a kind's models are trained."""
    found = [file for place in KINDS[kind][2] for file in (sorted(place.rglob("*.py")) if place.is_dir() else [place])]
    return [*found, HERE / "kinds.py"]


def set_of(name: str) -> Set:
    """Return the set of this name; vision-8+noise-limits is vision-8 with noise in its stream, and mergd's limits."""
    plain, _, poisoned = name.partition("+")
    poison, _, guard = poisoned.partition("-")
    one = SETS[plain]()
    which = one.draws[:POISONED_DRAWS] if poison else one.draws
    return replace(one, name=name, poison=poison, guard=guard, draws=which)


def _tasks(kind: str, name: str) -> tuple[str, ...]:
    """Return a constant of a kind's own module."""
    found: tuple[str, ...] = tuple(getattr(import_module(f"quality.{KINDS[kind][0]}"), name))
    return found


def _made(name: str, kind: str, tasks: str, which: tuple[Draw, ...], **more: Any) -> tuple[str, Callable[[], Set]]:
    return name, lambda: Set(name, kind, _tasks(kind, tasks), _tasks(kind, "UNSEEN"), which, **more)


EACH = draws(*REPORTED)
TWO_TRAININGS = draws(*REPORTED, trainings=2)  # where one takes many minutes
SETS: dict[str, Callable[[], Set]] = dict(
    [
        _made("digits-5", "digits", "TASKS", EACH),
        _made("digits-5-lora", "digits", "TASKS", EACH, adapters=True),
        _made("vision-8", "vision", "EIGHT", EACH),
        _made("vision-20", "vision", "TWENTY", EACH),
        _made("vision-50", "vision", "FIFTY", draws(REPORTED[0])),
        _made("vision-held-18", "vision", "HELD", EACH, tuned_on=False),
        _made("vision-8-lora", "vision", "EIGHT", TWO_TRAININGS, adapters=True),
        _made("text-8", "text", "EIGHT", EACH),
        _made("text-held-8", "text", "HELD", TWO_TRAININGS, tuned_on=False),
        _made("text-8-lora", "text", "EIGHT", TWO_TRAININGS, adapters=True),
    ]
)
POISONED = [
    f"{name}+{poison}{guard}"
    for name in ("digits-5", "vision-8", "text-8")
    for poison in ("noise", "shuffled", "tenfold")
    for guard in ("", "-limits", "-gate")
]
POISONED_DRAWS = 3
CURVE_ITEMS = {"vision": 100, "text": 40}  # by kind: test items that are looked at after each fold; all of the others


def arrival(tasks: tuple[str, ...], draw: Draw) -> tuple[str, ...]:
    """Return the tasks in the order in which this draw's checkpoints arrive."""
    names = sorted(tasks)
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(draw.order))
    return tuple(names[int(i)] for i in order)
