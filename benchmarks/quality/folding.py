"""One stream of checkpoints through the real mergd: its own command line, each command a process of its own.

The processes are forked from one that has imported mergd and torch already, which spares each the seconds of that.
"""

import json
import multiprocessing
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from .records import Verdict

FORKING = multiprocessing.get_context("forkserver")
PRELOADED = [
    "mergd.daemon.cli", "mergd.daemon.loop", "mergd.daemon.initialise", "mergd.daemon.control", "quality.measuring"
]  # fmt: skip
NO_LIMITS = {f"limits.{name}": 0 for name in
             ("norm", "weight_norm", "sigmas", "cosine", "near_copy", "share", "adapter_rank", "adapter_scale")}  # fmt: skip
KEPT = {
    "keep_last": 1000,
    "keep_slots": 1,
    "keep_within": "0s",
}  # every version's model; slots as far as folding needs them
FILES = (
    "config.json", "model.safetensors", "adapter_config.json", "adapter_model.safetensors", "fisher.safetensors"
)  # fmt: skip


@dataclass(frozen=True)
class Arriving:
    """A checkpoint and its name in the watched folder."""

    name: str
    folder: Path


@dataclass
class Stream:
    """What came of one: the model folder after each fold, in their order."""

    models: dict[str, Path]  # by the name of the checkpoint that was folded last
    seconds: tuple[float, ...]  # of each fold: reading, folding, decomposing, writing, gates; not the wait for its turn
    state_bytes: int  # what the last version keeps besides its model
    model_bytes: int
    parameters: dict[str, Any]  # of the rule, with its defaults
    out: tuple[Verdict, ...] = ()  # what was held or refused
    remerged: Path | None = None

    @property
    def last(self) -> Path:
        """The model folder after the last fold."""
        return list(self.models.values())[-1]


@dataclass(frozen=True)
class Merge:
    """A state, its watched folder and its configuration."""

    root: Path
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def state(self) -> Path:
        """The state directory."""
        return self.root / "state"

    @property
    def config(self) -> Path:
        """The configuration."""
        return self.root / "mergd.toml"

    def init(self, base: Path, rule: str, settings: Mapping[str, Any], tables: str) -> None:
        """Run `mergd init`; tables: TOML that is added to the configuration."""
        (self.root / "watch").mkdir()
        given = KEPT | {"threads": 1, "prepare": False} | dict(settings)
        words = [word for key, value in given.items() for word in ("--set", f"{key}={_told(value)}")]
        where = ["--watch", self.root / "watch", "--state", self.state, "--config", self.config]
        self.mergd("init", "--base", base, "--rule", rule, *where, *words)
        with self.config.open("a") as config:
            config.write(tables)

    def drop(self, one: Arriving) -> None:
        """Let a checkpoint arrive, marked as whole; no links, whose ctime would change with each link to the same file."""
        aside = self.root / one.name
        aside.mkdir()
        for file in FILES:
            if (one.folder / file).exists():
                shutil.copyfile(one.folder / file, aside / file)
        (aside / "READY").touch()
        aside.rename(self.root / "watch" / one.name)

    def mergd(self, *words: object) -> str:
        """Run a command to its end and return its output. Raises RuntimeError where it fails."""
        out = self.root / "out"
        process = FORKING.Process(target=be_mergd, args=([str(word) for word in words], str(out)))
        process.start()
        process.join()
        code, told = process.exitcode, out.read_text(errors="replace")
        process.close()
        if code:
            raise RuntimeError(f"mergd {' '.join(map(str, words))} ended with exit code {code}:\n{told[-4000:]}")
        return told

    def asked(self, *words: object) -> Any:
        """Run a command and return the JSON that it printed last."""
        told = self.mergd(*words, "--json", "-c", self.config)
        return json.loads(told[min(i for i in (told.find("["), told.find("{")) if i >= 0) :])

    def log(self) -> list[dict[str, Any]]:
        """Return what the versions' log says, the oldest first."""
        lines = (self.state / "log.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines][::-1]

    def model(self, version: int) -> Path:
        """Return the model folder of a version."""
        return self.state / "models" / f"{version:06d}"


@contextmanager
def streamed(
    work: Path,
    base: Path,
    arriving: Sequence[Arriving],
    rule: str,
    parameters: Mapping[str, Any],
    *,
    remerge: str = "",
    settings: Mapping[str, Any] = NO_LIMITS,
    tables: str = "",
) -> Iterator[Stream]:
    """Fold the checkpoints in their order, in a folder under `work` that is gone afterwards; then, perhaps, merge anew."""
    FORKING.set_forkserver_preload(PRELOADED)
    work.mkdir(parents=True, exist_ok=True)
    merge = Merge(Path(mkdtemp(prefix="stream-", dir=work)))
    try:
        merge.init(base, rule, {**settings, **parameters}, tables)
        for number, one in enumerate(arriving, 1):
            merge.drop(Arriving(f"{number:03d}-{one.name}", one.folder))
        merge.mergd("run", "--once", "-c", merge.config)
        yield _found(merge, remerge)
    finally:
        shutil.rmtree(merge.root)


def _found(merge: Merge, remerge: str) -> Stream:
    folds = merge.log()
    names = [fold["checkpoint"]["name"] for fold in folds]
    assert names == sorted(names), names  # in the order of arrival
    last = folds[-1]["version"]
    found = Stream(
        {fold["checkpoint"]["name"][4:]: merge.model(fold["version"]) for fold in folds},
        tuple(round(sum(fold["seconds"].values()) - fold["seconds"].get("wait", 0), 4) for fold in folds),
        _bytes(merge.state / "versions" / f"{last:06d}"),
        _bytes(merge.model(last)),
        json.loads((merge.state / "status.json").read_text())["parameters"],
        _left_out(merge),
    )
    if remerge:
        merge.mergd("remerge", "--rule", remerge, "-c", merge.config)
        found.remerged = merge.model(merge.log()[-1]["version"])
    return found


def _left_out(merge: Merge) -> tuple[Verdict, ...]:
    """Return the checkpoints that are not in the model."""
    status = json.loads((merge.state / "status.json").read_text())
    if not (status["held"] or status["refused"] or status["waiting"] or status["settling"] or status["blocked"]):
        return ()
    rows = [row for row in merge.asked("list") if row["state"] != "folded"]
    return tuple(
        Verdict(row["name"][4:], row["state"], tuple(reason["code"] for reason in row["reasons"])) for row in rows
    )


def _bytes(folder: Path) -> int:
    """Return the bytes of the weights in a folder."""
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def _told(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def be_mergd(words: list[str], out: str) -> None:
    """Be the command, its output in a file; ends with its exit code."""
    fd = os.open(out, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600)
    os.dup2(fd, 1)
    os.dup2(fd, 2)
    sys.stdout, sys.stderr = (
        os.fdopen(1, "w", buffering=1, closefd=False),
        os.fdopen(2, "w", buffering=1, closefd=False),
    )
    sys.argv = ["mergd", *words]
    from mergd.daemon.cli import main

    main()
