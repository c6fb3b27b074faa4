"""Rebuilding: a lost or broken database from the versions' manifests alone; what they do not say is lost, and told."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..state.committing import Commit
from ..state.contributions import from_text
from ..state.database import database_faults
from ..state.errors import DamagedFiles, MergdError, Misconfigured, Unavailable, Usage
from ..state.history import History
from ..state.lock import Lock
from ..state.manifests import pinned_in
from ..state.records import Checkpoint, Files, Totals, Version
from ..state.store import PARTS, Store, size_of, sync_folder
from .base import Base, examine, locate
from .checker import Pace, check_version
from .initialise import seen, take_existing
from .method import Method, method_of
from .opening import check_pins, pins_of
from .progress import Progress
from .settings import Settings
from .status import known, status, write_log, write_status

WHO = "mergd"
LOST = (
    "decisions (what was approved, refused or retried by hand)",
    "which checkpoints were held, refused or waiting, and why",
    "requests, attempts, tasks, pauses, what hooks were told, and what was pushed",
    "tags; instead each version that is there has one, rebuilt-7, which keeps it: mergd tag, and mergd tag -d NAME",
    "that a repository was made private after the fold of its checkpoint, until a listing says so again",
    "who moved the head and when, and when a version was made: its manifest's time stands for it",
    "what each fold did to each weight, how long it took, and what gates measured",
)
Manifests = Mapping[int, Mapping[str, Any]]


def rebuild(settings: Settings, force: bool, progress: Progress) -> dict[str, Any]:
    """Write a new database from the manifests; returns what was found, and what is lost.

    Raises Usage where the old database is well, or a copy of it is as new as the files, unless `force`; then the old one
    is moved to `backups/`, as a broken one is. Raises Misconfigured where the configuration or the base model is another.
    """
    store = Store(settings.state)
    if not store.versions.is_dir() or not store.numbers():
        raise Misconfigured(f"{store.versions} has no version to rebuild from", "make a new state: mergd init --help")
    lock = Lock(store.lock)
    lock.take("mergd rebuild")
    try:
        if not force:
            _check_need(store)
        manifests, spoilt = _read(store)
        base, method, commit = _pinned(settings, manifests, progress)
        draft = store.drafts / store.database.name
        _remove(draft)
        with History(draft, write=True) as history:
            history.pin(pins_of(settings, method, base, commit))
            _restore(history, store, manifests, spoilt)
            head = _choose_head(history, store)
            held = _hold(settings, history)
        aside = _install(draft, store)
        with History(store.database, write=True) as history:
            Commit(store, history).link()
            write_status(store, status(history, store, known(settings)))
            write_log(history, store)
            damaged = [f"{v}: {v.damaged}" for v in history.versions() if v.damaged]
    finally:
        lock.release()
    return {"head": head, "versions": len(manifests) + len(spoilt), "damaged": damaged, "held": held, "lost": list(LOST),
            "aside": aside}  # fmt: skip


# ---------------------------------------------------------------------------------------------------- is there need


def _check_need(store: Store) -> None:
    """Raise Usage if there is a better way: the database is well, or a copy of it knows all versions."""
    again = "to rebuild from the manifests all the same: mergd rebuild --force"
    if _knows(store.database) is not None:
        raise Usage(f"{store.database} opens well", f"mergd verify looks closer; {again}")
    copies = sorted((store.root / "backups").glob("*.db"), key=lambda path: path.stat().st_mtime, reverse=True)
    best = next((path for path in copies if (_knows(path) or 0) >= max(store.numbers())), None)
    if best is not None:
        db = store.database
        hint = f"to bring it back: rm -f {db}-wal {db}-shm; cp {best} {db}; {again}"
        raise Usage(f"{best} is a sound copy of the database, which says more than the manifests do", hint)


def _knows(path: Path) -> int | None:
    """Return the newest version that a database knows, 0 for none; None if it is not there, or not well."""
    if not path.exists():
        return None
    try:
        if database_faults(path):
            return None
        with History(path) as history:
            return history.next_number() - 1 if history.pins() else None
    except (MergdError, OSError):
        return None


def _install(draft: Path, store: Store) -> str | None:
    """Move what is in the database's place to `backups/`, and the new one there; returns where the old one is."""
    aside = None
    if store.database.exists():
        folder = store.root / "backups"
        folder.mkdir(mode=0o700, exist_ok=True)
        aside = folder / f"before-rebuild-{datetime.now(UTC):%Y%m%dT%H%M%S}.db"
        for ending in ("-wal", "-shm", ""):
            path = store.database.with_name(store.database.name + ending)
            if path.exists():
                path.rename(aside.with_name(aside.name + ending))
        sync_folder(folder)
    draft.rename(store.database)
    sync_folder(store.root)
    return str(aside) if aside else None


def _remove(draft: Path) -> None:
    for ending in ("", "-wal", "-shm"):
        draft.with_name(draft.name + ending).unlink(missing_ok=True)


# ------------------------------------------------------------------------------------------------ what is written


def _read(store: Store) -> tuple[dict[int, dict[str, Any]], list[int]]:
    """Return the manifests by version, and the versions whose manifests are damaged. Raises DamagedFiles if all are."""
    manifests: dict[int, dict[str, Any]] = {}
    spoilt = []
    for number in store.numbers():
        try:
            manifests[number] = store.manifest(number)
        except DamagedFiles:
            spoilt.append(number)
            if spoilt == store.numbers():
                raise
    return manifests, spoilt


def _pinned(settings: Settings, manifests: Manifests, progress: Progress) -> tuple[Base, Method, str | None]:
    """Return base model, method and commit as the manifests have them, which the configuration must agree with."""
    newest = manifests[max(manifests)]
    method = method_of(settings.method)
    check_pins(settings, method, settings.pinned | pinned_in(newest))
    place, commit = locate(settings.base_model, newest.get("base_commit"), progress)
    base = examine(place, progress, settings.convolutions)
    progress.end()
    if base.digest != newest["base_digest"]:
        found = f"the base model at {settings.base_model} has digest {base.digest[:12]}"
        raise Misconfigured(
            f"{found}, the versions were made with {newest['base_digest'][:12]}", "bring the old one back"
        )
    return base, method, commit


def _restore(history: History, store: Store, manifests: Manifests, spoilt: Sequence[int]) -> None:
    with history.all_or_nothing():
        ids: dict[str, int] = {}  # the checkpoint that first had a content
        for number in sorted([*manifests, *spoilt]):
            if number in spoilt:
                history.restore(_unknown(number, store, manifests))
            else:
                _restore_version(history, store, manifests[number], ids)
        for version in history.versions():
            if version.model_kept:  # nobody knows what else kept it
                history.tags.put(f"rebuilt-{version.number}", version.number, WHO)
    if spoilt:
        names = ", ".join(f"v{number}" for number in spoilt)
        why = f"rebuilt without the manifests of {names}, which are damaged: what they folded may be folded again"
        history.pause(WHO, f"{why}; look at mergd list, and then: mergd resume")


def _restore_version(history: History, store: Store, manifest: Mapping[str, Any], ids: dict[str, int]) -> None:
    number, said, made = manifest["version"], manifest["checkpoint"], _time_of(manifest, store)
    row = None
    if said is not None:
        row = _checkpoint(history, said, made, manifest, ids.get(said["digest"]))
        ids.setdefault(said["digest"], row.id)
    removed, merged = manifest.get("removed"), manifest.get("merged", [])
    for other in [*([removed] if removed else []), *merged]:
        if not history.checkpoints.has(other["id"]):  # the manifest of its fold is damaged
            _checkpoint(history, other, made, manifest, ids.get(other["digest"]))
    version = Version(
        number=number,
        parent=manifest["parent"],
        cause=manifest["cause"],
        checkpoint=row.id if row else None,
        rule=manifest["rule"],
        totals=Totals(**manifest["totals"]),
        scale=manifest["scale"],
        digest=manifest["digest"],
        created_at=made,
        removed=removed["id"] if removed else None,
        arguments=manifest.get("arguments", {}),
        gates=tuple(manifest.get("gates", ())),
        method=manifest.get("method", {}),
    )
    brought = manifest.get("contribution")
    contribution = from_text(brought, number, row.name) if brought and row else None
    history.restore(_as_it_lies(version, store), contribution)


def _checkpoint(
    history: History, said: Mapping[str, Any], made: str, manifest: Mapping[str, Any], first: int | None
) -> Checkpoint:
    """Restore the row of what a version folded. Files here are not known any more: they are read again when sighted."""
    of_fold = said is manifest["checkpoint"]  # of which alone it says more; what it does not say, nobody knows
    claimed = (of_fold and manifest.get("claimed")) or {}
    contributor = (manifest.get("contribution") or {}).get("contributor") or said["source"]
    row = Checkpoint(
        id=said.get("id") or history.checkpoints.next_id(),
        source=said["source"],
        place=said["place"],
        name=said["name"],
        fingerprint=said.get("revision", ""),
        state="folded",
        since=made,
        digest=said["digest"],
        duplicate_of=first,
        owner=contributor if contributor != said["source"] else None,
        public=claimed.get("public"),
        licence=claimed.get("licence"),
    )
    return history.checkpoints.restore(row)


def _unknown(number: int, store: Store, manifests: Manifests) -> Version:
    """Return a row for a version of which nothing is known but that its files are not to be touched."""
    path = store.manifest_path(number)
    rule = manifests[max(manifests)]["rule"]
    damaged = str(path.relative_to(store.root))
    return Version(number, None, "fold", None, rule, Totals(), 0.0, "", _written(path), damaged=damaged)


def _as_it_lies(version: Version, store: Store) -> Version:
    """Return a version with what lies there of its files: a part of which none is left was dropped."""
    kept: dict[Files, bool] = {}
    gone = []
    for part in PARTS:
        promised = store.promised(version.number, part)
        lacking = [name for name, file in promised.items() if size_of(store.root / name) != file.size]
        kept[part] = any((store.root / name).exists() for name in promised)
        gone += lacking if kept[part] else []
    damaged = ", ".join(gone) or None
    stamps = store.stamps(version.number)
    return replace(version, slots_kept=kept["slots"], model_kept=kept["model"], damaged=damaged, stamps=stamps)


def _time_of(manifest: Mapping[str, Any], store: Store) -> str:
    return _written(store.manifest_path(manifest["version"]))


def _written(path: Path) -> str:
    at = datetime.fromtimestamp(os.stat(path).st_mtime, UTC) if path.exists() else datetime.now(UTC)
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


# ------------------------------------------------------------------------------------------------ head, and newcomers


def _choose_head(history: History, store: Store) -> int:
    """Move the head to where `current` leads, or else to the newest version that is whole; each is read first.

    Where none is, it stays at the first of them, known to be damaged: then nothing is folded onto it.
    """
    order = [
        v for v in sorted(history.versions(), key=lambda v: (v.number != store.pointed(), -v.number)) if v.model_kept
    ]
    for version in order:
        if version.damaged is None and _is_whole(version, history, store):
            break
    else:
        if not order:
            raise DamagedFiles(f"no version in {store.models} has files", "models/current")
        version = order[0]
    history.move_head(version.number, WHO, "rebuild", ())
    return version.number


def _is_whole(version: Version, history: History, store: Store) -> bool:
    found = check_version(store, version.number, [part for part in PARTS if version.keeps(part)], Pace())
    if found.damaged:
        history.checks.damaged(version.number, found.damaged)
    else:
        history.checks.sound(version.number, found.stamps)
    return not found.damaged


def _hold(settings: Settings, history: History) -> list[str]:
    """Record what lies in the watched folder and was not folded from there, as the setting `existing` says."""
    try:
        return [row.name for row in take_existing(seen(settings), settings, history)]
    except Unavailable:
        return []
