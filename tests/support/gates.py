"""Gates to test with: small programs that measure one real number of a model folder, and merges whose head has the newest one."""

import json
import sys
from pathlib import Path
from typing import Any

from support.merges import NO_LIMITS, Sandbox, make_merge
from support.models import Model, tiny_base

PYTHON = (sys.executable, "-I", "-S")  # it starts fast
START = """
import json, os, struct, sys, time
asked = json.load(sys.stdin)
with open(os.path.join(asked["model"], "model.safetensors"), "rb") as file:
    (length,) = struct.unpack("<Q", file.read(8))
    first = 8 + length + json.loads(file.read(length))["layer.matrix.bias"]["data_offsets"][0]
    file.seek(first)
    (bias,) = struct.unpack("<f", file.read(4))
metrics = {"bias": {"value": bias, "higher_is_better": True, "n": 1}}
with open(__file__ + ".asked", "a") as file:
    file.write(json.dumps({**asked, "bias": bias}) + "\\n")
"""
END = """
print(json.dumps({"protocol": 1, "metrics": metrics}))
"""
BASE = 1.0  # the metric's value of the base model


def base_model() -> Model:
    """Return the tiny base, whose metric is BASE."""
    return scoring(tiny_base(), BASE)


def scoring(model: Model, value: float) -> Model:
    """Return a model with this value of the metric."""
    changed = model["layer.matrix.bias"].clone()
    changed[0] = value
    return model | {"layer.matrix.bias": changed}


def write_gate(path: Path, then: str = "") -> dict[str, Any]:
    """Write a gate's program; returns the table for it. then: lines that do what programs do, before it answers."""
    path.write_text(f"{START}{then}{END}")
    return {"command": [*PYTHON, str(path)]}


def gated(root: Path, then: str = "", name: str = "eval", **table: Any) -> Sandbox:
    """Return a merge with a gate; what is published is the newest checkpoint, so that its metric is the head's."""
    root.mkdir(exist_ok=True)
    gate = write_gate(program(root), then) | table
    return make_merge(root, base_model(), gate={name: gate}, rule="lawa", parameters={"k": 1}, limits=NO_LIMITS)


def program(root: Path) -> Path:
    """Return where a merge's gate lies."""
    return root / "gate.py"


def drop(merge: Sandbox, name: str, value: float, seed: int | None = None) -> Path:
    """Drop a checkpoint with this value of the metric."""
    tuned = merge.fine_tuned(len(list(merge.watch.iterdir())) + 1 if seed is None else seed)
    return merge.drop(name, scoring(tuned, value))


def asked(merge: Sandbox) -> list[dict[str, Any]]:
    """Return what the gate was asked, and what it saw, oldest first."""
    path = Path(f"{program(merge.root)}.asked")
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
