"""Auditing: the database against the folders, without reading weights. What does not agree is said, and nothing is changed."""

import os
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from ..state.contributions import as_text
from ..state.database import database_faults
from ..state.errors import Damaged, DamagedFiles
from ..state.history import History
from ..state.manifests import named, pinned_in
from ..state.records import Checkpoint, FileDigest, Version
from ..state.store import FOLDERS, PARTS, Store, folder_name, version_digest


@dataclass(frozen=True)
class Fault:
    """One thing that is not as it should be."""

    what: str  # a file within the state, or a row
    found: str
    damage: bool = True  # else nothing that is promised suffers


def audit(history: History, store: Store, versions: Sequence[Version]) -> list[Fault]:
    """Return what SQLite finds in the database, and where these versions, the folders and the link do not agree."""
    faults = [Fault(store.database.name, text) for text in database_faults(store.database)]
    with readable(store):
        for version in versions:
            faults += _of_version(version, history, store)
        return [*faults, *_of_pins(history, store, versions), *_strays(history, store), *_of_link(history, store)]


@contextmanager
def readable(store: Store) -> Iterator[None]:
    """Raise Damaged where rows cannot even be read."""
    try:
        yield
    except (sqlite3.Error, ValueError, TypeError, KeyError) as error:
        raise Damaged(f"{store.database}: a row cannot be read: {error}", "to make it again: mergd rebuild") from None


def _of_pins(history: History, store: Store, versions: Sequence[Version]) -> Iterator[Fault]:
    """Yield where what init pinned is not what the newest of these versions was made with."""
    pins = history.pins()
    try:
        manifest = store.manifest(versions[-1].number) if versions else {}
    except DamagedFiles:  # which is said of the version
        return
    said = pinned_in(manifest) | {name: manifest[name] for name in ("base_commit", "base_digest") if name in manifest}
    for name, value in said.items():
        if not _alike(value, pins.get(name)):
            yield Fault("pins in the database", f"{name} is {pins.get(name)!r}, {versions[-1]} has {value!r}")


def _alike(said: Any, pinned: Any) -> bool:
    """Whether two pins are the same; a parameter that a rule got between them is in one of them alone."""
    if isinstance(said, dict) and isinstance(pinned, dict):
        return all(said[key] == pinned[key] for key in said.keys() & pinned.keys())
    return bool(said == pinned)


def _of_version(version: Version, history: History, store: Store) -> Iterator[Fault]:
    try:
        manifest = store.manifest(version.number)
    except DamagedFiles as error:
        yield Fault(error.files[0], "cannot be read, or is not as it was written")
        return
    yield from _of_row(version, manifest, history)
    yield from _of_files(version, store, manifest)
    for part in PARTS:
        if version.keeps(part):
            yield from _of_sizes(store.promised(version.number, part), store)


def _of_row(version: Version, manifest: Mapping[str, Any], history: History) -> Iterator[Fault]:
    """Yield where a version's row is not what its manifest says, which vouches for itself."""
    named = [number for number in (version.checkpoint, version.removed) if number is not None]
    if lost := [number for number in named if not history.checkpoints.has(number)]:
        yield Fault(f"{version} in the database", f"names a checkpoint {lost[0]}, and there is none")
        return
    row = history.checkpoints.get(version.checkpoint) if version.checkpoint is not None else None
    if row is not None and row.state != "folded":
        yield Fault(f"{row.name} in the database", f"is {row.state!r}, and {version} folded it")
    for name, value in row_of(version, row, history).items():
        if name in manifest and manifest[name] != value:
            yield Fault(f"{version} in the database", f"{name} is {value!r}, its manifest says {manifest[name]!r}")
    slots, model = (
        [FileDigest(**{key: file[key] for key in ("name", "size", "blake3")}) for file in manifest[part]]
        for part in PARTS
    )
    weights = [file for file in model if file.name.endswith(".safetensors")]
    if version_digest(slots, weights) != manifest["digest"]:
        yield Fault(f"{version}'s manifest", "its digest is not that of its files")


def row_of(version: Version, row: Checkpoint | None, history: History) -> dict[str, Any]:
    """Return what the rows of a version and of its checkpoint say, as a manifest says it."""
    brought = history.contributions.of(version.number)
    return {
        "version": version.number,
        "parent": version.parent,
        "cause": version.cause,
        "arguments": dict(version.arguments),
        "gates": list(version.gates),
        "checkpoint": named(row),
        "removed": named(history.checkpoints.get(version.removed)) if version.removed is not None else None,
        "contribution": as_text(brought) if brought else None,
        "rule": version.rule,
        "method": dict(version.method),
        "totals": asdict(version.totals),
        "scale": version.scale,
        "digest": version.digest,
    }


def _of_sizes(promised: Mapping[str, FileDigest], store: Store) -> Iterator[Fault]:
    for name, file in promised.items():
        path = store.root / name
        if not path.is_file():
            yield Fault(name, "is gone")
        elif path.stat().st_size != file.size:
            yield Fault(name, f"has {path.stat().st_size:,} bytes, {file.size:,} were written")


def _of_files(version: Version, store: Store, manifest: Mapping[str, Any]) -> Iterator[Fault]:
    """Yield what lies in a version's folders and is promised by nobody."""
    for part in PARTS:
        folder = store.root / FOLDERS[part] / folder_name(version.number)
        known = {file["name"] for file in manifest[part]} if version.keeps(part) else set()
        known |= {"manifest.json"} if part == "slots" else set()
        for at, _, names in os.walk(folder):
            within = (os.path.relpath(os.path.join(at, name), folder) for name in names)
            for name in sorted(within):
                if name not in known:
                    dropped = name in {file["name"] for file in manifest[part]}
                    found = "is there, and the database says it was dropped" if dropped else "is in no manifest"
                    yield Fault(f"{FOLDERS[part]}/{folder.name}/{name}", found, damage=dropped)


def _strays(history: History, store: Store) -> Iterator[Fault]:
    """Yield what lies where versions lie, and is none."""
    versions = history.versions()
    rows: dict[str, Callable[[Version], bool]] = {
        "versions": lambda version: True,
        "models": lambda version: version.model_kept,
    }
    for folder, promised in rows.items():
        known = {folder_name(version.number) for version in versions if promised(version)} | {"current"}
        for name in sorted(os.listdir(store.root / folder)):
            if name not in known:
                found = "is in no row of the database: mergd run removes it when it starts"
                yield Fault(f"{folder}/{name}", found, damage=False)


def _of_link(history: History, store: Store) -> Iterator[Fault]:
    head, pointed = history.head(), store.pointed()
    if (head.number if head else None) != pointed:
        at = f"leads to v{pointed}" if pointed is not None else "leads to no version"
        yield Fault("models/current", f"{at}, and the head is {head or 'none'}")
