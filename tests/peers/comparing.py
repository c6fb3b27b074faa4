"""Compares what two implementations publish: relative difference of the merged task vector, by kind of weight."""

import importlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from math import sqrt
from pathlib import Path

import numpy as np
import torch
from blake3 import blake3
from references.interface import Checkpoints
from safetensors.torch import load_file
from torch import Tensor

from .cases import CASES, Case
from .models import kinds
from .with_mergd import published

Weights = Mapping[str, Tensor]
KINDS = ("matrix", "lookup", "other")
EQUAL = 1e-5


@dataclass(frozen=True)
class Compared:
    """The largest difference over the models, by kind of weight; of the reference, and of mergd itself."""

    case: Case
    reference: Mapping[str, float] = field(default_factory=dict)
    rule: Mapping[str, float] = field(default_factory=dict)
    error: str = ""

    @property
    def differs(self) -> bool:
        """Whether the reference is not the package's method to the last digits that count."""
        return max(self.reference.values(), default=0.0) >= EQUAL

    @property
    def rule_differs(self) -> bool:
        """Whether mergd is not, where its reference is."""
        return not self.differs and max(self.rule.values(), default=0.0) >= EQUAL

    @property
    def wrong(self) -> str:
        """What nobody has explained; empty where nothing is."""
        unexplained = (self.differs and not self.case.why) or (self.rule_differs and not self.case.rule_why)
        return self.error or ("it differs, and cases.py does not say why" if unexplained else "")


def compare(case: Case, work: Path, count: int) -> Compared:
    """Compare a case on its models."""
    used = case.checkpoints or count
    error = ""
    reference: dict[str, float] = {}
    rule: dict[str, float] = {}
    for model in case.models:
        folder = work / model
        target = folder / case.package / str(CASES.index(case))
        if (target / "error.txt").exists():
            return Compared(case, error=(target / "error.txt").read_text().splitlines()[-1])
        peer = task_vector(target, folder / "base")
        reference = _larger(reference, differences(by_reference(case, folder, model, used), peer, model))
        try:
            rule = _larger(rule, differences(by_mergd(case, folder, used), peer, model))
        except RuntimeError as failed:
            error = str(failed)
    return Compared(case, reference, rule, error)


def by_mergd(case: Case, folder: Path, count: int) -> dict[str, Tensor]:
    """Return what mergd publishes for the first checkpoints in `folder`; cases that fold alike share it."""
    told = [case.rule, sorted(case.parameters.items()), count]
    work = folder / "mergd" / sha256(json.dumps(told).encode()).hexdigest()
    current = work / "state" / "models" / "current"
    if not current.exists():
        checkpoints = [folder / f"checkpoint-{i}" for i in range(count)]
        current = published(work, folder / "base", checkpoints, case.rule, case.parameters)
    return task_vector(current, folder / "base")


def by_reference(case: Case, folder: Path, model: str, count: int) -> dict[str, Tensor]:
    """Return what the batch reference of a case publishes for the first checkpoints in `folder`."""
    folders = [folder / f"checkpoint-{i}" for i in range(count)]
    given = Checkpoints(
        taus=[task_vector(one, folder / "base") for one in folders],
        kinds=kinds(model),
        seeds=[seeds_of(one) for one in folders],
        extras=[{"fisher": load_file(one.with_name(f"{one.name}.fisher.safetensors"))} for one in folders],
        base=_read(folder / "base"),
    )
    merge = importlib.import_module(f"references.{case.rule}").merge
    merged: dict[str, Tensor] = merge(given, **case.parameters, **case.batch)
    return merged


def differences(left: Weights, right: Weights, model: str) -> dict[str, float]:
    """Return norm(left - right) / norm(right) by kind of weight."""
    return {kind: _relative(left, right, [n for n, k in kinds(model).items() if k == kind]) for kind in KINDS}


def task_vector(folder: Path, base: Path) -> dict[str, Tensor]:
    """Return what a model folder adds to the base model, float64."""
    theta0, theta = _read(base), _read(folder)
    return {name: theta[name].double() - theta0[name].double() for name in theta0}


def seeds_of(checkpoint: Path) -> dict[str, int]:
    """Return the seed of each weight of a checkpoint: of its name and the digest of its bytes, as mergd takes it."""
    contents = {name: blake3(tensor.numpy().tobytes()).hexdigest() for name, tensor in _read(checkpoint).items()}
    digests = {name: sha256(json.dumps([name, [content], 0.0]).encode()).digest() for name, content in contents.items()}
    return {name: int.from_bytes(digest[:8], "big") >> 1 for name, digest in digests.items()}


def drawn(seed: int, count: int) -> Tensor:
    """Return the numbers of `seed` in [0, 1), as dare and della draw them: splitmix64 of the flat index."""
    x = np.uint64(seed) + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return torch.from_numpy(((x ^ (x >> np.uint64(31))) >> np.uint64(11)) * 2.0**-53)


def _larger(left: Mapping[str, float], right: Mapping[str, float]) -> dict[str, float]:
    return {kind: max(value, left.get(kind, 0.0)) for kind, value in right.items()}


def _relative(left: Weights, right: Weights, names: Sequence[str]) -> float:
    apart = sum(float((left[name].double() - right[name]).square().sum()) for name in names)
    size = sum(float(right[name].square().sum()) for name in names)
    return sqrt(apart / size) if size else float(apart > 0)


def _read(folder: Path) -> dict[str, Tensor]:
    return {name: tensor for path in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(path).items()}
