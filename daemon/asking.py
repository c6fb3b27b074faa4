"""How commands get their answers: from a running daemon, by doing the work here, or by reading the history."""

import json
import logging
import os
import pwd
import re
import sqlite3
from collections.abc import Container, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..state.archive import Archive
from ..state.disk_errors import meaning
from ..state.errors import Damaged, DiskFull, MergdError, Misconfigured, NotPermitted, Usage
from ..state.history import History
from ..state.lock import Lock, holder_of
from ..state.records import Version
from ..state.store import Store
from . import display, tagging, transfer
from .dropping import decide, describe
from .naming import find_checkpoint, find_version
from .pinning import Sources
from .replaying import reachable
from .retention import Keep
from .settings import Settings
from .status import describe_checkpoint, describe_log, describe_version, in_model, known
from .status import status as describe_status

if TYPE_CHECKING:
    from .hooking import Hooking
    from .requests import AnyRequest

LIKE_A_VERSION = re.compile(r"v?\d{1,5}|head(~\d+)?")
LIVE = (
    "doing",
    "prepared",
    "trouble",
    "sources",
    "daemon",
    "gates",
    "budget",
    "waits",
    "push",
    "telling",
)  # keys of status.json that only a daemon knows


def ask(settings: Settings, request: "AnyRequest") -> dict[str, Any]:
    """Have a request carried out, by the daemon if one runs, else here by the same code. Raises what it raises."""
    from . import control
    from .requests import LONG

    store = store_of(settings)
    holder = holder_of(store.lock)
    if holder and holder.get("socket"):
        answer = control.ask(Path(holder["socket"]), request, lambda text: display.err.print(display.safe(text)))
        return answer | {"daemon": True}
    if request.verb not in LONG:
        return _ask_here(settings, store, request) | {"daemon": False}
    from .loop import Loop

    with display.shown_progress() as show, Loop(settings, f"mergd {request.verb}", show) as loop:
        if request.verb == "fold":  # of what may lie elsewhere
            loop.poll()
        return loop.ask(request)


def _ask_here(settings: Settings, store: Store, request: "AnyRequest") -> dict[str, Any]:
    """Carry out what needs the history alone: rolling back must work when the base model or the folder is gone.

    Whoever takes the lock makes good what a crash left: an interrupted `gc` is finished by the next one.
    """
    from ..state.committing import Commit
    from .control import Ask
    from .desk import Desk
    from .hooking import Hooking
    from .recovery import recover
    from .telling import hook_names

    store.make_room()
    lock = Lock(store.lock)
    lock.take(f"mergd {request.verb}")
    try:
        with History(store.database, write=True) as history:
            if request.verb != "verify":  # which says how it is
                recover(Commit(store, history), history)
            asked = Ask(request, f"uid {os.getuid()}")
            keep, hooks = Keep.of(settings), hook_names(settings)
            hooking = Hooking(settings, history, store)
            with suppress(sqlite3.Error):  # then once there is room
                hooking.open()
            Desk(history, store, None, None, lambda place: None, hooks, keep).carry_out(asked)
            _tell(settings, store, history, hooking)
    finally:
        lock.release()
    if isinstance(asked.outcome, MergdError):
        raise asked.outcome
    assert asked.outcome is not None
    return asked.outcome


def _tell(settings: Settings, store: Store, history: History, hooking: "Hooking") -> None:
    """Tell the hooks, and those who read the state's files; what was asked for is done all the same."""
    from .status import owed_news, write_log, write_status
    from .telling import make_hooks, tell_hooks

    try:
        write_status(store, describe_status(history, store, known(settings)))
        write_log(history, store)
        tell_hooks(make_hooks(settings.hooks), owed_news(history, store, settings.hooks), history.told)
        hooking.finish()
    except (MergdError, OSError, sqlite3.Error) as error:
        words = "the hooks, or those who read status.json, will be told later: %s"
        logging.getLogger(__name__).warning(words, error)
    finally:
        hooking.close()


def run_once(settings: Settings, name: str = "mergd") -> bool:
    """Fold all that is ready or about to be; returns whether a checkpoint was refused. The figures are `name`'s."""
    from .loop import Loop
    from .observing import at_the_end

    store_of(settings)
    with display.shown_progress() as show, Loop(settings, "mergd run --once", show) as loop, at_the_end(loop, name):
        loop.push()
        loop.poll()
        loop.post("rescan")
        loop.post("upkeep")  # from cron there is no other occasion
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
        raise Misconfigured(f"{settings.state} holds no merge", store.way_in())
    return store


def history_of(settings: Settings) -> History:
    """Open the history to read. Raises NotPermitted for those who may only read status.json and log.jsonl."""
    return open_history(store_of(settings))


def open_history(store: Store) -> History:
    """Open the history to read, as whoever we are. Raises NotPermitted."""
    try:
        return History(store.database)
    except sqlite3.DatabaseError as error:
        if isinstance(full := meaning(error), DiskFull):
            raise full from error
        if not isinstance(error, sqlite3.OperationalError):
            raise Damaged(f"{store.database}: {error}", "to make it again: mergd rebuild") from None
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
            answer = describe_status(history, store, known(settings))
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
    """Return the versions, newest first, with what became of their files."""
    with history_of(settings) as history:
        again = _replayable(settings, history)
        states = {v.number: _files_of(v, again) for v in history.versions()}
        return [entry | {"files": states[entry["version"]]} for entry in describe_log(history)]


def _replayable(settings: Settings, history: History) -> set[int]:
    """Return the versions whose slots are there, or can be made once more from sources that are."""
    from .sources import here_alone

    sources = Sources(Archive(Store(settings.state)), history.checkpoints, here_alone(settings).sight)

    @cache
    def found(number: int) -> bool:
        row = history.checkpoints.get(number)
        return (sources.find(row) or sources.elsewhere(row)) is not None

    return reachable(history.versions(), found)


def _files_of(version: Version, replayable: Container[int]) -> str:
    if version.damaged:
        return "damaged"
    if version.model_kept:
        return "kept" if version.slots_kept else "kept without slots"
    return "replayable" if version.number in replayable else "gone"


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
                "share": next((e["share"] for e in mine if e["checkpoint"]["digest"] == row.digest), None),
                "versions": [e["version"] for e in mine],
                "attempts": attempts,
            }
        head = history.head()
        reports = history.weight_reports(version.number) if version.cause != "read-out" else {}  # it brought nothing
        return describe_version(version, history, head.number if head else None) | {
            "weights": {name: vars(report) for name, report in reports.items()},
            "transfer": transfer.describe(history, version),
        }


def tags(settings: Settings) -> list[dict[str, Any]]:
    """Return every tag, by name."""
    with history_of(settings) as history:
        return tagging.describe(history.tags.all())


def dropping(settings: Settings) -> dict[str, Any]:
    """Return what is kept and what would be dropped now, by these settings; changes nothing."""
    with history_of(settings) as history:
        return describe(decide(history, Keep.of(settings)), store_of(settings))
