"""One bad checkpoint in a stream, and what of mergd may keep it out: its own limits, or a gate that measures accuracy."""

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from shutil import copyfile
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import save_file

from .folding import NO_LIMITS, Arriving
from .kinds import Weights
from .recipe import Set
from .training import BASE, PT, Trained, bad_source

NAME = "bad"
PLACE = 0.75  # of the stream, from its beginning
TENFOLD = 10.0
GATE_ITEMS = 40  # test items of each task that the gate looks at
GATE_DROP, GATE_TOTAL_DROP = 0.02, 0.04  # of the mean accuracy, as a share
GATE = Path(__file__).with_name("accuracy_gate.py")
SOURCES = (Path(__file__), GATE)


@contextmanager
def with_poison(
    work: Path, one: Set, trained: Trained, arriving: Sequence[Arriving]
) -> Iterator[tuple[list[Arriving], dict[str, Any]]]:
    """Return what arrives, and the settings with which it is folded."""
    if not one.poison:
        yield list(arriving), {}
        return
    place = int(PLACE * len(arriving))
    guarding: dict[str, Any] = {"settings": {}} if one.guard == "limits" else {"settings": NO_LIMITS}
    if one.guard == "gate":
        guarding["tables"] = gate_table(one, trained)
    work.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix="bad-", dir=work) as folder:
        bad = Arriving(NAME, _written(trained, _bad(one, trained, arriving[0]), Path(folder)))
        yield [*arriving[:place], bad, *arriving[place:]], guarding


def gate_table(one: Set, trained: Trained) -> str:
    """Return the configuration of a gate that measures each draft on a few test items of every task of the set."""
    words = [sys.executable, GATE, trained.place(BASE), trained.kind, trained.seed, GATE_ITEMS, *one.tasks]
    command = json.dumps([str(word) for word in words])
    return f"\n[gate.accuracy]\ncommand = {command}\ndrop = {GATE_DROP}\ntotal_drop = {GATE_TOTAL_DROP}\n"


def _bad(one: Set, trained: Trained, honest: Arriving) -> Weights:
    """Return a bad checkpoint: Gaussian noise, each weight with the norm that an honest task vector has there, or another."""
    base = trained.weights(BASE)
    if one.poison == "noise":
        dice = torch.Generator().manual_seed(trained.seed)
        like = trained.weights(honest.folder.name)
        return {name: w + _noise((like[name] - w).norm(), w, dice) for name, w in base.items()}
    (source,) = bad_source(one)
    tuned = trained.weights(source)
    factor = TENFOLD if one.poison == "tenfold" else 1.0
    return {name: w + factor * (tuned[name] - w) for name, w in base.items()}


def _noise(norm: torch.Tensor, like: torch.Tensor, dice: torch.Generator) -> torch.Tensor:
    noise = torch.randn(like.shape, generator=dice)
    scaled: torch.Tensor = noise * (norm / noise.norm())
    return scaled


def _written(trained: Trained, weights: Weights, folder: Path) -> Path:
    copyfile(trained.place(BASE) / "config.json", folder / "config.json")
    save_file({name: w.contiguous() for name, w in weights.items()}, folder / "model.safetensors", PT)
    return folder
