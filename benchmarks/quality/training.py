"""The cache of what was trained: model folders as mergd takes them, in WHERE/trained/KIND-SEED/KEY/.

The key is a digest of the kind's sources and of some packages' versions: another recipe trains anew. A folder is there whole or
not at all, so that a run that was cut short goes on where it was.
"""

import ast
import hashlib
import json
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path

from safetensors.torch import load_file, save_file

from .kinds import Tuned, Weights
from .recipe import Draw, Set
from .sets import kind_of, sources_of

BASE = "base"
LORA, SHUFFLED = ".lora", ".shuffled"
WHOLE = ".whole"  # beside an adapter: the base with its product added, for those that know no adapters
PT = {"format": "pt"}
DRAWN_AND_TRAINED_BY = ("torch", "numpy", "pillow")  # packages of which another version may give other models


@cache
def recipe_key(kind: str) -> str:
    """Return the digest of all that says how a kind's models are trained; comments and docstrings do not count."""
    told = hashlib.sha256(" ".join(map(version, DRAWN_AND_TRAINED_BY)).encode())
    for path in sources_of(kind):
        told.update(f"{path.name} {ast.dump(_without_docstrings(path.read_text()))}".encode())
    return told.hexdigest()[:12]


def _without_docstrings(source: str) -> ast.Module:
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
    return tree


@dataclass(frozen=True)
class Trained:
    """The models of one kind that were trained from one seed."""

    where: Path
    kind: str
    seed: int

    @property
    def folder(self) -> Path:
        """Where they lie."""
        return self.where / "trained" / f"{self.kind}-{self.seed}" / recipe_key(self.kind)

    def place(self, what: str) -> Path:
        """Return the model folder of the base or of a task (with LORA, SHUFFLED behind its name)."""
        return self.folder / what

    def whole(self, what: str) -> Path:
        """Return the model folder with whole weights; of an adapter, the base with its product added."""
        return self.place(what + WHOLE) if what.endswith(LORA) else self.place(what)

    def weights(self, what: str) -> Weights:
        """Return whole weights."""
        return load_file(self.whole(what) / "model.safetensors")

    def has(self, what: str) -> bool:
        """Whether it was trained already."""
        return self.place(what).is_dir()

    def make(self, what: str) -> None:
        """Train it, if it is not there."""
        if self.has(what):
            return
        kind = kind_of(self.kind)
        if what == BASE:
            return self._write(what, Tuned(kind.base(self.seed)))
        task = what.removesuffix(LORA).removesuffix(SHUFFLED)
        adapter, shuffled = what.endswith(LORA), what.endswith(SHUFFLED)
        tuned = kind.fine_tune(self.weights(BASE), task, self.seed, adapter=adapter, shuffled=shuffled)
        if adapter:
            self._write(what + WHOLE, Tuned(tuned.weights))
        self._write(what, tuned)

    def _write(self, what: str, tuned: Tuned) -> None:
        aside = self.folder / f".{what}-{os.getpid()}"
        aside.mkdir(parents=True)
        if tuned.adapter:
            (aside / "adapter_config.json").write_text(json.dumps(dict(tuned.adapter_config), indent=2) + "\n")
            save_file(_plain(tuned.adapter), aside / "adapter_model.safetensors", PT)
        else:
            (aside / "config.json").write_text(json.dumps(dict(kind_of(self.kind).config), indent=2) + "\n")
            save_file(_plain(tuned.weights), aside / "model.safetensors", PT)
        if tuned.fisher:
            save_file(_plain(tuned.fisher), aside / "fisher.safetensors", PT)
        shutil.rmtree(self.place(what), ignore_errors=True)
        aside.rename(self.place(what))


def _plain(weights: Weights) -> Weights:
    """Return tensors that own their memory."""
    return {name: w.detach().clone().contiguous() for name, w in weights.items()}


def wanted(one: Set, draw: Draw) -> list[str]:
    """Return what a draw of a set needs besides the base."""
    return [*(task + LORA * one.adapters for task in one.tasks), *bad_source(one)]


def bad_source(one: Set) -> list[str]:
    """Return which model a set's bad checkpoint is made of: of a task that is not folded, if of any."""
    return {"shuffled": [one.unseen[0] + SHUFFLED], "tenfold": [one.unseen[0]]}.get(one.poison, [])


def missing(
    where: Path, asked: Iterable[tuple[Set, Draw]]
) -> tuple[list[tuple[Trained, str]], list[tuple[Trained, str]]]:
    """Return what is still to be trained: bases, and then what needs them."""
    all_of = {
        (Trained(where, one.kind, draw.training), what): None for one, draw in asked for what in wanted(one, draw)
    }
    bases = dict.fromkeys((trained, BASE) for trained, _ in all_of)
    return [job for job in bases if not job[0].has(job[1])], [job for job in all_of if not job[0].has(job[1])]
