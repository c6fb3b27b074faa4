"""What the outside sees: the status, the log and the list, as plain values, and the two files that carry them to readers."""

import errno
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..state.decided import Decisions
from ..state.disk_errors import FULL
from ..state.history import History
from ..state.records import Checkpoint, Move, News, Version
from ..state.store import Store, replace_file
from .replaying import share_of
from .settings import Settings

LOG_LINES = 100  # newest versions in log.jsonl: it is written anew at each fold
SHOWN_PINS = ("rule", "parameters", "base_model", "base_digest", "base_commit", "tied")
READABLE = 0o644
NAMED = 3  # blocked checkpoints that the status names: the list has all


def status(history: History, store: Store, live: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return how things stand. `live` is what only a running daemon knows; it wins."""
    kept = history.with_files()
    pins, head, counts = history.pins(*SHOWN_PINS), history.head(), history.checkpoints.count()
    return {
        "head": head.number if head else None,
        "published": str(store.model(head.number)) if head else None,
        "folded": counts.get("folded", 0),
        "waiting": counts.get("ready", 0) + counts.get("folding", 0),
        "settling": counts.get("settling", 0),
        "refused": counts.get("refused", 0),
        "held": counts.get("held", 0),
        "blocked": counts.get("blocked", 0),
        "blocked_by": list(_blocked(history)) if counts.get("blocked") else [],
        "paused": history.paused(),
        "doing": "",
        "prepared": None,
        "pushed": asdict(pushed) if (pushed := history.pushes.last()) else None,
        "hooks": history.notices.standing(),
        "telling": {},
        "trouble": "",
        "sources": "",
        "rule": head.rule if head else pins.get("rule"),
        "parameters": _parameters(head, pins),
        "totals": asdict(head.totals) if head else None,
        "scale": head.scale if head else None,
        "latency": latency(head) if head else None,
        "measured": measured(head, history) if head else {},
        "versions": {"all": history.count_versions(), "kept": sum(version.kept for version in kept)},
        "base_model": pins.get("base_model"),
        "base_digest": pins.get("base_digest"),
        "base_commit": pins.get("base_commit"),
        "tied": pins.get("tied"),
        "state": str(store.root),
        "disk": {"used": store.used(version.number for version in kept), "free": shutil.disk_usage(store.root).free},
        "daemon": None,
    } | dict(live or {})


def _blocked(history: History) -> Iterator[str]:
    """Yield what keeps checkpoints from being read, which only an operator mends."""
    for row in history.checkpoints.in_state("blocked")[:NAMED]:
        yield f"{row.name}: {'; '.join(reason.found for reason in row.reasons)}"


def latency(version: Version) -> dict[str, float]:
    """Return how long a version took from the moment that its checkpoint was ready, in seconds: in all, and by step."""
    return {"in_all": round(sum(version.seconds.values()), 3), **version.seconds}


def measured(version: Version, history: History) -> dict[str, dict[str, float]]:
    """Return what gates measured of a version: each metric's value, by the gate's name."""
    gates = history.evaluations.of(version.digest)
    return {gate: {name: m.value for name, m in found.metrics.items()} for gate, found in gates.items()}


def _parameters(head: Version | None, pins: Mapping[str, Any]) -> Any:
    """Return the parameters of the rule by which the head is read."""
    if head is None:
        return pins.get("parameters")
    read_by = head.arguments.get("by") or head.method or pins
    return read_by.get("parameters")


def known(settings: Settings) -> dict[str, Any]:
    """Return what the configuration adds to the status."""
    programs = [name if table.mode == "enforce" else f"{name} (only observes)" for name, table in settings.gate.items()]
    return {"gates": [*settings.gates, *programs], "budget": int(settings.disk)}


def describe_version(version: Version, history: History, head: int | None) -> dict[str, Any]:
    """Return a version as scripts see it."""
    row = history.checkpoints.get(version.checkpoint) if version.checkpoint is not None else None
    return {
        "version": version.number,
        "parent": version.parent,
        "cause": version.cause,
        "share": share_of(version) if version.checkpoint is not None else None,
        "checkpoint": {"name": row.name, "digest": row.digest, "source": row.source, "place": row.place}
        if row
        else None,
        "removed": history.checkpoints.get(version.removed).name if version.removed is not None else None,
        "rule": version.rule,
        "method": dict(version.method),
        "arguments": dict(version.arguments),
        "totals": asdict(version.totals),
        "scale": version.scale,
        "digest": version.digest,
        "created_at": version.created_at,
        "seconds": dict(version.seconds),
        "bytes_read": version.bytes_read,
        "bytes_written": version.bytes_written,
        "kept": version.kept,
        "slots_kept": version.slots_kept,
        "tags": history.tags.of(version.number),
        "pushed": history.pushes.commits(version.number),
        "measured": measured(version, history),
        "head": version.number == head,
    }


def describe_log(history: History, last: int = -1) -> Iterator[dict[str, Any]]:
    """Yield the versions, or the `last` newest ones, newest first."""
    head = history.head()
    number = head.number if head else None
    return (describe_version(version, history, number) for version in history.newest(last))


def describe_checkpoint(
    row: Checkpoint, history: History, in_model: frozenset[str], decisions: Decisions
) -> dict[str, Any]:
    """Return a checkpoint as scripts see it; `in_model` has the digests of what the head holds."""
    return {
        "name": row.name,
        "state": row.state,
        "since": row.since,
        "reasons": [asdict(reason) for reason in row.reasons],
        "in_model": row.digest in in_model,
        "digest": row.digest,
        "source": row.source,
        "place": row.place,
        "order": row.order,
        "owner": row.owner,
        "duplicate_of": history.checkpoints.get(row.duplicate_of).name if row.duplicate_of else None,
        "replaces": history.checkpoints.get(row.replaces).name if row.replaces else None,
        "decisions": [
            {key: value for key, value in vars(decision).items() if key != "content"}
            for decision in decisions.on((row.digest, row.fingerprint or row.place))
        ],
    }


def owed_news(history: History, store: Store, hooks: Iterable[str]) -> Iterator[tuple[str, News]]:
    """Yield what each of these hooks is still to be told, oldest first, as long as it is told what was yielded before.

    No more is read: what a hook is owed that cannot be told grows with each move.
    """
    for hook in hooks:
        before = 0
        while (owed := history.owed(hook, 1)) and (move := owed[0][1]).id != before:
            yield hook, _news(move, history, store)
            before = move.id


def _news(move: Move, history: History, store: Store) -> News:
    version = history.version(move.to_version)
    assert version is not None, "a move leads to a version: a foreign key"
    model = str(store.model(version.number))
    return News(move.id, version.number, move.from_version, move.who, move.why, model, version.digest, move.at)


def in_model(history: History) -> frozenset[str]:
    """Return the digests of what the head holds."""
    head = history.head()
    return history.digests_in_line(head.number if head else None)


def write_status(store: Store, found: Mapping[str, Any]) -> None:
    """Replace status.json, for those who may not read the database."""
    tell_everybody(store.root / "status.json", json.dumps(found, indent=1) + "\n")


def tell_everybody(path: Path, text: str) -> None:
    """Replace a file that everybody may read; on a full disk it is written over."""
    try:
        _replace(path, [text])
    except OSError as error:
        if error.errno not in FULL or not path.exists():
            raise
        _overwrite(path, text.encode())


def write_log(history: History, store: Store) -> None:
    """Replace log.jsonl: the newest versions, newest first."""
    lines = (json.dumps(line) + "\n" for line in describe_log(history, LOG_LINES))
    _replace(store.root / "log.jsonl", lines)


def _overwrite(path: Path, data: bytes) -> None:
    """Write over what is there, which takes no room: on a full disk, that it is full must still be told."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        data = data.ljust(os.fstat(fd).st_size)  # a reader sees the old text or the new one, never the end of the old
        if os.pwrite(fd, data, 0) != len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    finally:
        os.close(fd)


def _replace(path: Path, lines: Iterable[str]) -> None:
    def write(aside: Path) -> None:
        with aside.open("w") as file:
            file.writelines(lines)
        aside.chmod(READABLE)

    replace_file(path, write)
