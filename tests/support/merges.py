"""A merge to test with: a base model, an empty watched folder, a state and a configuration, side by side in one folder."""

import hashlib
import shutil
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support.commands import Command, Ended, mergd, running, without_events
from support.models import CONFIG, Model, fine_tuned, load_model, save_lone, save_model, tiny_base

from mergd.daemon.configuration import read_settings
from mergd.daemon.initialise import initialise
from mergd.daemon.loop import Loop
from mergd.daemon.progress import Progress
from mergd.daemon.settings import Settings, validate
from mergd.daemon.settings_tables import Limits
from mergd.state.history import History
from mergd.state.reading import Reader
from mergd.state.records import Checkpoint, Version
from mergd.state.store import Store

AT_ONCE = {"quiet": 0, "quiet_unsure": 0, "quiet_network": 0}  # wherever the tests run
NO_LIMITS: dict[str, float] = dict.fromkeys(Limits.model_fields, 0)  # for checkpoints that the gate would hold


@dataclass(frozen=True)
class Sandbox:
    """Where everything of one merge lies, and what a test does with it."""

    root: Path
    model: Model  # the base's weights

    @property
    def base(self) -> Path:
        return self.root / "base"

    @property
    def watch(self) -> Path:
        return self.root / "watch"

    @property
    def state(self) -> Path:
        return self.root / "state"

    @property
    def config(self) -> Path:
        return self.root / "mergd.toml"

    @property
    def settings(self) -> Settings:
        return read_settings(self.config)

    @property
    def store(self) -> Store:
        return Store(self.state)

    # ---------------------------------------------------------------------------------------------------- dropping

    def fine_tuned(self, seed: int, size: float = 0.1) -> Model:
        """Return a fine-tune of the base."""
        return fine_tuned(self.model, seed, size)

    def drop(self, name: str, model: Mapping[str, Any] | int) -> Path:
        """Put a checkpoint into the watched folder, there at once; a number is a fine-tune's seed."""
        weights = self.fine_tuned(model) if isinstance(model, int) else model
        aside, place = self.root / f"aside-{name.replace('/', '-')}", self.watch / name
        if name.endswith(".safetensors"):
            return save_lone(aside, weights).rename(place)
        return save_model(aside, weights).rename(place)

    def remove(self, name: str) -> None:
        """Take a checkpoint's folder away."""
        shutil.rmtree(self.watch / name)

    # ------------------------------------------------------------------------------------ commands, in other processes

    def mergd(self, command: str, *arguments: object) -> Ended:
        """Run `mergd COMMAND ARGUMENTS` with this merge's configuration."""
        return mergd(command, "-c", self.config, *arguments, at=self.root)

    def running(self, command: str, *arguments: object, **environment: str) -> AbstractContextManager[Command]:
        """Run a command beside the test."""
        return running(command, "-c", self.config, *arguments, at=self.root, environment=environment)

    def log(self) -> list[dict[str, Any]]:
        """Return what `mergd log --json` says."""
        entries: list[dict[str, Any]] = self.mergd("log", "--json").json
        return entries

    # -------------------------------------------------------------------------------------- the loop in this process

    def loop(self) -> Loop:
        """Return a loop over this merge, to be entered."""
        return Loop(self.settings, "a test")

    def fold_all(self) -> list[Checkpoint]:
        """Fold all that is ready; returns every checkpoint as it then is."""
        with self.loop() as loop:
            loop.post("rescan")
            loop.run(until=loop.idle)
        return self.checkpoints()

    # ------------------------------------------------------------------------------------------------------- looking

    def checkpoints(self) -> list[Checkpoint]:
        """Return every row."""
        with History(self.store.database) as history:
            return history.checkpoints.all()

    def states(self) -> dict[str, str]:
        """Return the state of each checkpoint by name."""
        return {row.name: row.state for row in self.checkpoints()}

    def versions(self) -> list[Version]:
        """Return every version, oldest first."""
        with History(self.store.database) as history:
            return history.versions()

    def standing(self) -> dict[str, dict[str, Any]]:
        """Return how far each hook of the configuration is."""
        with History(self.store.database) as history:
            return history.notices.standing()

    def used(self) -> int:
        """Return the bytes that the state takes on disk."""
        return self.store.used(version.number for version in self.versions())

    def published(self, version: int | None = None) -> Model:
        """Return the published weights of a version, by default of the one that `current` points to."""
        return load_model(self.store.model(version) if version else self.store.current)

    def weight_files(self, version: int) -> dict[str, str]:
        """Return the sha256 of each file of a version: published ones and slots."""
        folders = (self.store.model(version), self.store.versions / f"{version:06d}")
        paths = [path for folder in folders for path in sorted(folder.rglob("*")) if path.is_file()]
        return {str(path.relative_to(self.state)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}

    def readouts(self, version: int) -> Model:
        """Return the slots of a version by weight; a rule with one slot a weight reads them out as they are."""
        found: Model = {}
        for layout in self.store.slot_layouts(version).values():
            with Reader(layout) as reader:
                found |= {name: reader.read(name) for name in layout.tensors}
        return found


def make_merge(
    root: Path, model: Model | None = None, model_config: Mapping[str, Any] | None = CONFIG, **settings: Any
) -> Sandbox:
    """Initialise a merge in `root`, in this process; checkpoints are quiet at once unless `quiet` says otherwise."""
    merge = Sandbox(root, tiny_base() if model is None else model)
    if not merge.base.exists():
        save_model(merge.base, merge.model, model_config)
    merge.watch.mkdir(parents=True, exist_ok=True)
    places = {"base_model": str(merge.base), "watch": merge.watch, "state": merge.state}
    initialise(validate(places | AT_ONCE | without_events() | settings, "a test"), merge.config, Progress())
    return merge


def writable(path: Path) -> Path:
    """Let a test write to a file of a version, which nobody else does."""
    path.chmod(0o644)
    return path


def set_in(config: Path, **values: str) -> None:
    """Set keys of a configuration that init wrote, in place: uncomment and replace. `limits.share`: of that table."""
    lines = config.read_text().splitlines()
    tables = [i for i, line in enumerate(lines) if line.startswith("[")]
    for name, value in values.items():
        table, _, key = name.rpartition(".")
        first = lines.index(f"[{table}]") if table else 0
        at = [i for i, line in enumerate(lines) if i >= first and line.removeprefix("# ").startswith(f"{key} = ")]
        at = [i for i in at if not table and i < min(tables, default=len(lines))] or at
        at = [i for i in at if lines[i].startswith(key)] or at
        assert len(at) == 1, f"{key} stands {len(at)} times"
        lines[at[0]] = f"{key} = {value}"
    config.write_text("\n".join(lines) + "\n")
