"""The kinds and the sets of tasks, by name. What is fetched or trained for one is imported when that one is asked for."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from .kinds import Kind
from .recipe import REPORTED, Draw, Set, draws

HERE = Path(__file__).resolve().parent
DEMO, VISION, TEXT = HERE.parent / "demo", HERE / "vision", HERE / "text"


@dataclass(frozen=True)
class Where:
    """Where a kind is found: modules of this package, and the files that say how its models are trained."""

    kind: str
    of_class: str
    tasks: str
    sources: tuple[Path, ...]


KINDS = {
    "digits": Where(
        "digits", "Digits", "digits", (HERE / "digits.py", *(DEMO / f"digit_{n}.py" for n in ("tasks", "training")))
    ),
    # a task's name says all of it: the lists of names in tasks.py train nothing
    "vision": Where(
        "vision.kind", "Vision", "vision.tasks", tuple(p for p in VISION.glob("*.py") if p.name != "tasks.py")
    ),
    "text": Where("text.kind", "Text", "text.tasks", tuple(TEXT.glob("*.py"))),
}


@cache
def kind_of(name: str) -> Kind:
    """Return the kind of this name."""
    where = KINDS[name]
    made: Kind = getattr(import_module(f"quality.{where.kind}"), where.of_class)()
    return made


def sources_of(kind: str) -> list[Path]:
    """Return the files that say how a kind's models are trained."""
    return sorted((*KINDS[kind].sources, HERE / "kinds.py"))


def set_of(name: str) -> Set:
    """Return the set of this name; vision-8+noise-limits is vision-8 with noise in its stream, and mergd's limits."""
    plain, _, poisoned = name.partition("+")
    poison, _, guard = poisoned.partition("-")
    one = SETS[plain]()
    which = one.draws[:POISONED_DRAWS] if poison else one.draws
    return replace(one, name=name, poison=poison, guard=guard, draws=which)


def _tasks(kind: str, name: str) -> tuple[str, ...]:
    """Return a constant of a kind's own module."""
    found: tuple[str, ...] = tuple(getattr(import_module(f"quality.{KINDS[kind].tasks}"), name))
    return found


def _made(name: str, kind: str, tasks: str, which: tuple[Draw, ...], **more: Any) -> tuple[str, Callable[[], Set]]:
    def made() -> Set:
        unseen = tuple(task for task in _tasks(kind, "UNSEEN") if (name, task) not in SHARED)
        return Set(name, kind, _tasks(kind, tasks), unseen, which, **more)

    return name, made


SHARED = {("text-held-8", "places")}  # buildings are in one of its tasks too

EACH = draws(*REPORTED)
TWO = draws(*REPORTED, trainings=2)  # in five orders, where a training takes many minutes
ONE = draws(*REPORTED, trainings=1)
SETS: dict[str, Callable[[], Set]] = dict(
    [
        _made("digits-5", "digits", "TASKS", EACH),
        _made("digits-5-lora", "digits", "TASKS", EACH, adapters=True),
        _made("vision-8", "vision", "EIGHT", EACH),
        _made("vision-20", "vision", "TWENTY", EACH),
        _made("vision-50", "vision", "FIFTY", draws(REPORTED[0])),
        _made("vision-held-18", "vision", "HELD", EACH),
        _made("vision-8-lora", "vision", "EIGHT", TWO, adapters=True),
        _made("text-8", "text", "EIGHT", EACH),
        _made("text-held-8", "text", "HELD", TWO),
        _made("text-8-lora", "text", "EIGHT", ONE, adapters=True),
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
