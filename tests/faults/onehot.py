"""A merge whose weights count: checkpoint k adds 1 to coordinate k, so that a lost or a doubled fold shows exactly.

Nothing here is mergd's: what a crash left is read with the standard library, and the digests' package.
"""

import array
import json
import math
import os
import shutil
import sqlite3
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blake3 import blake3

COORDINATES = 256
SHAPES = {"layer.matrix.weight": (16, 16), "layer.bias": (COORDINATES,)}  # each has every coordinate
BASE = 5.0  # each weight of the base model
Counts = Counter[int]  # coordinate -> how often it was added


def name_of(k: int) -> str:
    """Return the name of the checkpoint that adds 1 to coordinate k."""
    return f"c{k:04d}"


def coordinate_of(name: str) -> int:
    """Return the coordinate that a checkpoint adds 1 to."""
    return int(name.removeprefix("c"))


def weights(k: int | None) -> bytes:
    """Return the weight file of the base model, or of checkpoint k."""
    values = array.array("f", [BASE + (at == k) for at in range(COORDINATES)]).tobytes()
    header = {
        name: {"dtype": "F32", "shape": shape, "data_offsets": [i * len(values), (i + 1) * len(values)]}
        for i, (name, shape) in enumerate(SHAPES.items())
    }
    raw = json.dumps(header).encode()
    return len(raw).to_bytes(8, "little") + raw + len(SHAPES) * values


def save(folder: Path, k: int | None = None) -> Path:
    """Save the base model, or checkpoint k; returns the folder."""
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "made-up"}')
    (folder / "model.safetensors").write_bytes(weights(k))
    return folder


def load(paths: list[Path]) -> dict[str, list[float]]:
    """Return the weights that lie in safetensors files."""
    found = {}
    for data in map(Path.read_bytes, paths):
        start = 8 + int.from_bytes(data[:8], "little")
        header = json.loads(data[8:start])
        header.pop("__metadata__", None)
        for name, entry in header.items():
            assert math.prod(entry["shape"]) == COORDINATES
            first, last = entry["data_offsets"]
            found[name] = array.array("f", data[start + first : start + last]).tolist()
    return found


def counted(found: dict[str, list[float]], base: float, scale: float = 1.0) -> Counts | None:
    """Return what weights count, each by a scale; None if they do not agree, or hold anything but counts."""
    counts = [
        Counter({k: (value - base) / scale for k, value in enumerate(row) if value != base}) for row in found.values()
    ]
    same = set(found) == set(SHAPES) and all(one == counts[0] for one in counts)
    return Counter({k: int(n) for k, n in counts[0].items()}) if same and _whole(counts[0]) else None


def _whole(counts: "Counter[int]") -> bool:
    return all(float(n).is_integer() for n in counts.values())


@dataclass(frozen=True)
class Version:
    """What the history says of one version."""

    number: int
    parent: int | None
    cause: str
    name: str  # of the checkpoint that was folded, or taken out; empty where neither was
    adds: int  # 1; -1 where one was taken out
    merged: tuple[str, ...]  # names of the checkpoints that a re-merge began from nothing with
    scale: float  # by which the counts are published
    digest: str
    slots: int  # whether its slots are promised
    model: int  # whether its published model is


@dataclass(frozen=True)
class Seen:
    """All that anybody could have been told by a state, at one moment."""

    versions: dict[int, Version]
    moves: list[tuple[Any, ...]]  # (id, from, to, who, why), oldest first
    folded: Counter[str]  # names of folded checkpoints; one that was folded again counts twice
    states: Counter[str]  # of all rows
    contents: dict[str, str]  # digest of what was folded -> name
    told: dict[int, str]  # version -> digest, in log.jsonl
    served: int | None  # what `current` leads to
    tasks: int  # that were ever written down
    sound: list[str]  # what SQLite's own checks say against it

    @property
    def head(self) -> int | None:
        return self.moves[-1][2] if self.moves else None

    def line(self, number: int | None) -> list[int]:
        """Return a version and its ancestors."""
        found = []
        while number is not None:
            found.append(number)
            number = self.versions[number].parent
        return found

    def counts(self, number: int | None) -> Counts:
        """Return what a version's slots have to count: what its line added and took out, back to a re-merge."""
        counts: Counts = Counter()
        for version in (self.versions[n] for n in self.line(number)):
            if version.name:
                counts[coordinate_of(version.name)] += version.adds
            counts.update(map(coordinate_of, version.merged))
            if version.cause == "re-merge":
                break
        return Counter({k: n for k, n in counts.items() if n != 0})


def see(state: Path) -> Seen:
    """Look at a state as a crash left it, or as it is at rest. The database is looked at in a copy: a look changes a log."""
    with tempfile.TemporaryDirectory() as folder:
        for name in ("mergd.db", "mergd.db-wal"):
            if (state / name).exists():
                shutil.copy(state / name, folder)
        db = sqlite3.connect(Path(folder) / "mergd.db")
        try:
            return _seen(db, state)
        finally:
            db.close()


def _seen(db: sqlite3.Connection, state: Path) -> Seen:
    sound = [row[0] for row in db.execute("pragma integrity_check") if row[0] != "ok"]
    sound += [f"a foreign key of {row[0]} leads nowhere" for row in db.execute("pragma foreign_key_check")]
    versions = db.execute(
        "select number, parent, cause, coalesce(name, ''), iif(removed is null, 1, -1), arguments, scale, versions.digest,"
        " slots_kept, model_kept from versions left join checkpoints on checkpoints.id = coalesce(checkpoint, removed)"
    ).fetchall()
    names = dict(db.execute("select id, name from checkpoints"))
    log, link = state / "log.jsonl", state / "models" / "current"
    told = map(json.loads, log.read_text().splitlines() if log.exists() else ())
    rows = db.execute("select name, state, digest from checkpoints").fetchall()
    return Seen(
        versions={
            number: Version(number, parent, cause, name, adds, _merged(cause, arguments, names), *more)
            for number, parent, cause, name, adds, arguments, *more in versions
        },
        moves=db.execute("select id, from_version, to_version, who, why from moves order by id").fetchall(),
        folded=Counter(name for name, at, _ in rows if at == "folded"),
        states=Counter(at for _, at, _ in rows),
        contents={digest: name for name, at, digest in rows if at == "folded"},
        told={entry["version"]: entry["digest"] for entry in told},
        served=int(os.readlink(link)) if link.is_symlink() else None,
        tasks=db.execute("select count(*) from tasks").fetchone()[0],
        sound=sound,
    )


def _merged(cause: str, arguments: str, names: dict[int, str]) -> tuple[str, ...]:
    return tuple(names[row] for row in json.loads(arguments)["folds"]) if cause == "re-merge" else ()


def digest_of(path: Path) -> str | None:
    """Return the digest of a file, as b3sum prints it, None if there is none."""
    return blake3(path.read_bytes()).hexdigest() if path.is_file() else None
