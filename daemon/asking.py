"""How commands get their answers: from a running daemon, by doing the work here, or by reading the history."""

import json
import logging
import os
import pwd
import re
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..state.errors import Damaged, MergdError, Misconfigured, NotPermitted, Usage
from ..state.history import History
from ..state.lock import Lock, holder_of
from ..state.store import Store
from . import display
from .naming import find_checkpoint, find_version
from .settings import Settings
from .status import describe_checkpoint, describe_log, describe_version, in_model
from .status import status as describe_status

if TYPE_CHECKING:
    from .requests import AnyRequest

LIKE_A_VERSION = re.compile(r"v?\d{1,5}|head(~\d+)?")
LIVE = ("doing", "trouble", "daemon", "gates", "waits")  # keys of status.json that only a daemon knows


def ask(settings: Settings, request: "AnyRequest") -> dict[str, Any]:
    """Have a request carried out, by the daemon if one runs, else here by the same code. Raises what it raises."""
    from . import control

    store = store_of(settings)
    holder = holder_of(store.lock)
    if holder and holder.get("socket"):
        answer = control.ask(Path(holder["socket"]), request, lambda text: display.err.print(display.safe(text)))
        return answer | {"daemon": True}
    if request.verb != "fold":
        return _ask_here(settings, store, request) | {"daemon": False}
    from .loop import Loop

    with display.shown_progress() as show, Loop(settings, f"mergd {request.verb}", show) as loop:
        return loop.ask(request)


def _ask_here(settings: Settings, store: Store, request: "AnyRequest") -> dict[str, Any]:
    """Carry out what needs the history alone: rolling back must work when the base model or the folder is gone."""
    from .control import Ask
    from .desk import Desk
    from .status import owed_news, write_log, write_status
    from .telling import make_hooks, tell_hooks

    lock = Lock(store.lock)
    lock.take(f"mergd {request.verb}")
    try:
        with History(store.database, write=True) as history:
            asked = Ask(request, f"uid {os.getuid()}")
            Desk(history, store, None, lambda place: None, list(settings.hooks)).carry_out(asked)
            write_status(history, store, {"gates": list(settings.gates)})
            write_log(history, store)
            try:
                tell_hooks(make_hooks(settings.hooks), owed_news(history, store), history.told)
            except MergdError as error:  # what was asked for is done all the same
                logging.getLogger(__name__).warning("the hooks will be told later: %s", error)
    finally:
        lock.release()
    if isinstance(asked.outcome, MergdError):
        raise asked.outcome
    assert asked.outcome is not None
    return asked.outcome


def run_once(settings: Settings) -> bool:
    """Fold all that is ready or about to be; returns whether a checkpoint was refused."""
    from .loop import Loop

    store_of(settings)
    with display.shown_progress() as show, Loop(settings, "mergd run --once", show) as loop:
        loop.post("rescan")
        loop.run(until=loop.idle)
        if (why := loop.left_over()) is not None:
            raise why
        return loop.refused


def become_owner(settings: Settings) -> None:
    """Become the state's owner if we are root: what root wrote there, the daemon's user could not change."""
    owner = settings.state.stat() if settings.state.exists() else None
    if os.geteuid() != 0 or owner is None or owner.st_uid == 0:
        return
    try:
        os.initgroups(pwd.getpwuid(owner.st_uid).pw_name, owner.st_gid)
    except KeyError:
        os.setgroups([])
    os.setgid(owner.st_gid)
    os.setuid(owner.st_uid)


def store_of(settings: Settings) -> Store:
    """Return the state's store, as its owner. Raises Misconfigured where there is none."""
    store = store_to_look_at(settings)
    become_owner(settings)
    return store


def store_to_look_at(settings: Settings) -> Store:
    """Return the state's store as whoever we are, for what everybody may read. Raises Misconfigured where there is none."""
    store = Store(settings.state)
    if not store.database.exists():
        raise Misconfigured(f"{settings.state} holds no merge", "make one: mergd init --help")
    return store


def history_of(settings: Settings) -> History:
    """Open the history to read. Raises NotPermitted for those who may only read status.json and log.jsonl."""
    store = store_of(settings)
    try:
        return History(store.database)
    except sqlite3.DatabaseError as error:
        if not isinstance(error, sqlite3.OperationalError):
            raise Damaged(f"{store.database}: {error}", "bring a sound copy of it back") from None
        raise NotPermitted(
            f"this user may not read {store.database}", f"{store.root}/status.json says how it is"
        ) from error


# ---------------------------------------------------------------------------------------------------------- reading


def status(settings: Settings) -> dict[str, Any]:
    """Return the status, from the history and what a running daemon last said; else from status.json alone."""
    store = store_of(settings)
    said = said_by(store)
    try:
        with history_of(settings) as history:
            answer = describe_status(history, store, {"gates": list(settings.gates)})
    except NotPermitted:
        return said
    return answer | ({key: said[key] for key in LIVE if key in said} if holder_of(store.lock) else {})


def said_by(store: Store) -> dict[str, Any]:
    """Return what status.json says, which everybody may read; nothing where there is none yet."""
    try:
        return dict(json.loads((store.root / "status.json").read_text()))
    except (OSError, ValueError):
        return {}


def is_well(answer: Mapping[str, Any]) -> bool:
    """Whether a health probe should be content: a daemon runs, and nothing keeps it from folding."""
    return bool(answer.get("daemon")) and not answer.get("trouble")


def log(settings: Settings) -> list[dict[str, Any]]:
    """Return the versions, newest first."""
    with history_of(settings) as history:
        return list(describe_log(history))


def checkpoints(settings: Settings) -> list[dict[str, Any]]:
    """Return every checkpoint, with what it waits for."""
    store = store_of(settings)
    waits = said_by(store).get("waits", {})
    with history_of(settings) as history:
        rows, held, decisions = history.checkpoints.all(), in_model(history), history.decided.all()
        return [
            describe_checkpoint(row, history, held, decisions)
            | {"waits_for": {"ready": "its turn", "settling": waits.get(str(row.id), "")}.get(row.state, "")}
            for row in rows
        ]


def show(settings: Settings, what: str) -> dict[str, Any]:
    """Return one version with its per-weight statistics, or one checkpoint with its attempts and versions."""
    with history_of(settings) as history:
        try:
            version = find_version(history, what)
        except Usage:
            if LIKE_A_VERSION.fullmatch(what):
                raise
            row = find_checkpoint(history, what)
            mine = [
                entry
                for entry in describe_log(history)
                if entry["checkpoint"] and entry["checkpoint"]["place"] == row.place
            ]
            attempts = [vars(attempt) for attempt in history.checkpoints.attempts(row.id)]
            return describe_checkpoint(row, history, in_model(history), history.decided.all()) | {
                "versions": [e["version"] for e in mine],
                "attempts": attempts,
            }
        head = history.head()
        reports = history.weight_reports(version.number)
        return describe_version(version, history, head.number if head else None) | {
            "weights": {name: vars(report) for name, report in reports.items()}
        }


def verify(settings: Settings, version: str | None) -> list[str]:
    """Return the damaged files of a version, or of all kept ones."""
    with history_of(settings) as history:
        versions = [find_version(history, version)] if version else history.versions()
        store = store_of(settings)
        return [file for v in versions if v.kept for file in store.damaged(v.number)]
