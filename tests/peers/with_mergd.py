"""Merges by mergd's own command line: a base model, its checkpoints in the watched folder, one run, what is published."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from support.commands import mergd

from mergd.plugins.registry import load

NO_GATE = ("norm", "weight_norm", "sigmas", "cosine", "near_copy", "share")  # the fine-tunes are no accident


def published(work: Path, base: Path, checkpoints: list[Path], rule: str, parameters: Mapping[str, Any]) -> Path:
    """Return the folder of what is published after all checkpoints, folded in order; or merged anew, where the rule must
    see all of them at once. Raises RuntimeError with what mergd complains of."""
    shutil.rmtree(work, ignore_errors=True)
    for number, checkpoint in enumerate(checkpoints):
        place = shutil.copytree(checkpoint, work / "watch" / f"tuned-{number}")
        if rule == "fisher":
            shutil.copy(checkpoint.with_name(f"{checkpoint.name}.fisher.safetensors"), place / "fisher.safetensors")
    folds = hasattr(load("rules", rule), "keeps")
    named = _set({name.rstrip("_"): value for name, value in parameters.items()})
    open_gate = _set({f"limits.{name}": 0 for name in NO_GATE})
    config = work / "mergd.toml"
    places = ("--base", base, "--watch", work / "watch", "--state", work / "state", "--config", config)
    by = ("--rule", rule, *named) if folds else ("--rule", "average")
    _run(work, "init", *places, "--existing", "fold", "--set", "threads=1", *by, *open_gate)
    _run(work, "run", "--once", "--strict", "-c", config)
    if not folds:
        _run(work, "remerge", "-c", config, "--rule", rule, *named)
    return work / "state" / "models" / "current"


def _set(values: Mapping[str, Any]) -> list[str]:
    return [word for name, value in values.items() for word in ("--set", f"{name}={value}")]


def _run(work: Path, *words: object) -> None:
    ended = mergd(*words, at=work)
    if ended.code:
        raise RuntimeError(f"mergd {words[0]}: {' '.join(ended.complaint)[-300:]}")
