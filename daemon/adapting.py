"""A version's merged task vector as one PEFT adapter: each matrix cut to its leading singular directions, one at a time."""

import json
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..plugins.rules._sums import square
from ..state.errors import Usage
from ..state.history import History
from ..state.records import Weight
from ..state.store import write_file
from ..state.writing import Planned, Writer
from .asking import open_history, store_to_look_at
from .base import HEAD, Base, float32_bytes, tie_setting
from .exporting import check_room, kept_version, place_of, put_together
from .factoring import factors, padded
from .machine import settle_threads
from .opening import pinned_base
from .progress import Progress
from .settings import Settings
from .vectors import MergedVector, open_vector

PREFIX = "base_model.model."


@dataclass(frozen=True)
class Target:
    """One matrix that goes into the adapter."""

    weight: Weight
    module: str  # as PEFT names it
    table: bool  # an embedding
    turned: bool  # stored as (in, out)

    def planned(self, rank: int) -> list[Planned]:
        """Return the two tensors that it becomes: A (rank, in) and B (out, rank)."""
        m, n = self.weight.shape
        inside, out = (m, n) if self.turned or self.table else (n, m)
        a, b = ("lora_embedding_A", "lora_embedding_B") if self.table else ("lora_A.weight", "lora_B.weight")
        name = f"{PREFIX}{self.module}"
        return [Planned(f"{name}.{a}", "F32", (rank, inside)), Planned(f"{name}.{b}", "F32", (out, rank))]


def export_adapter(settings: Settings, text: str, target: Path, rank: int, progress: Progress) -> dict[str, Any]:
    """Write a version's merged task vector as an adapter of the base model; says how much of it that keeps.

    Raises Usage for a wrong version or target or where nothing would be left, Damaged for a file that is not as it was
    written, NotPermitted for those who may not read the state; then nothing is left.
    """
    settle_threads(settings.threads)
    store = store_to_look_at(settings)
    place = place_of(target, settings)
    with open_history(store) as history:
        version, pins = kept_version(history, text, slots_do=True), _pins(history)
    base = pinned_base(settings, pins, progress)
    with ExitStack() as stack:
        vector = open_vector(version, base, store, progress, stack)
        squares = _squares(vector, base, settings.buffers, progress)
        targets = [found for w in base.weights if squares[w.name] and (found := _target(w, base))]
        if not targets:
            raise Usage(f"no matrix of {version} differs from the base model's", "export it without --lora")
        rank = min(rank, max(min(target.weight.shape) for target in targets))
        planned = [tensor for target in targets for tensor in target.planned(rank)]
        check_room(place, sum(tensor.nbytes for tensor in planned))
        with put_together(place) as aside:
            kept = _write(vector, targets, planned, rank, aside, settings.buffers, progress)
            config = _config(targets, rank, settings.base_model)
            write_file(aside / "adapter_config.json", (json.dumps(config, indent=2) + "\n").encode(), 0o644)
    progress.end()
    return {"version": version.number, "folder": str(place), "rank": rank} | _shares(base, targets, squares, kept)


def _pins(history: History) -> dict[str, Any]:
    return {"convolutions": "sum"} | history.pins()


def _squares(vector: MergedVector, base: Base, memory: int, progress: Progress) -> dict[str, float]:
    """Return each weight's squared norm."""
    progress.begin("measuring", len(base.weights), sum(float32_bytes(w.shape) for w in base.weights))
    squares = {}
    for w in base.weights:
        blocks = (vector.read(w, rows) for rows in vector.blocks(w, memory))
        squares[w.name] = sum((square(block) for block in blocks), 0.0)
        progress.advance(float32_bytes(w.shape))
        progress.next_weight()
    return squares


# ------------------------------------------------------------------------------------------------------- what goes in


def _target(w: Weight, base: Base) -> Target | None:
    """Return the matrix that a weight is in a plain LoRA; None where it is none, or PEFT could not apply it.

    PEFT adapts a tied embedding either at the input alone, or twice when it merges: it is left out.
    """
    if len(w.shape) != 2 or w.kind not in ("matrix", "lookup") or not w.name.endswith(".weight"):
        return None
    if w.kind == "lookup" and _is_tied(w, base):
        return None
    module = w.name.removesuffix(".weight")
    # The linear map that is stored (in, out), Conv1D of transformers, always has a bias: a head without one is no such.
    turned = f"{module}.bias" in base.by_name and base.turned(w.name) is True
    return Target(w, module, w.kind == "lookup", turned)


def _is_tied(w: Weight, base: Base) -> bool:
    """Whether a lookup table is the output head too, as far as names and config.json tell."""
    if w.name in base.tied.values():
        return True
    if w.shape[0] != base.vocabulary or not base.config or tie_setting(base.config) is False:
        return False
    return not any(HEAD.search(name) and info.shape == w.shape for name, info in base.layout.tensors.items())


def _config(targets: Iterable[Target], rank: int, base_model: str) -> dict[str, Any]:
    """Return adapter_config.json; alpha is the rank, so that the factors count as they are."""
    listed = list(targets)
    return {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": base_model,
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": any(target.turned for target in listed),
        "target_modules": [target.module for target in listed],
        "inference_mode": True,
    }


def _shares(base: Base, targets: list[Target], squares: Mapping[str, float], kept: float) -> dict[str, Any]:
    """Return how much of the task vector's squared norm is kept: of all, of what went in; and what was left out."""
    inside = {target.weight.name for target in targets}
    whole, matrices = sum(squares.values()), sum(squares[name] for name in inside)
    left: dict[str, dict[str, float]] = {}
    for w in base.weights:
        if squares[w.name] and w.name not in inside:
            entry = left.setdefault(_why_not(w), {"weights": 0, "share": 0.0})
            entry["weights"] += 1
            entry["share"] += squares[w.name] / whole
    return {"matrices": len(targets), "kept": min(kept / whole, 1.0), "kept_of_matrices": min(kept / matrices, 1.0)} | {
        "left_out": left
    }


def _why_not(w: Weight) -> str:
    if w.kind == "lookup":
        return "tied or bare embeddings"
    if len(w.shape) < 2:
        return "biases and norms"
    return "convolutions, batches of matrices and bare matrices"


# ------------------------------------------------------------------------------------------------------ the factors


def _write(
    vector: MergedVector,
    targets: list[Target],
    planned: list[Planned],
    rank: int,
    folder: Path,
    memory: int,
    progress: Progress,
) -> float:
    """Write the factors of every matrix; returns the squared norm that they keep."""
    progress.begin("factoring", len(targets), sum(float32_bytes(target.weight.shape) for target in targets))
    kept = 0.0
    with Writer(folder, "adapter_model", planned, {"format": "pt"}, mode=0o644) as writer:
        names = iter(planned)
        for target in targets:
            left, right, square_kept = factors(vector, target.weight, rank, memory)
            A, B = (left.T, right.T) if target.turned or target.table else (right, left)
            writer.write(next(names).name, padded(A, 0, rank))
            writer.write(next(names).name, padded(B, 1, rank))
            kept += square_kept
            progress.advance(float32_bytes(target.weight.shape))
            progress.next_weight()
        writer.finish()
    return kept
