"""What people decide on single checkpoints: approve what is held, refuse what is not folded, take a refusal back; and look."""

import os
from pathlib import Path
from typing import Any

from ..plugins.sources.interface import Sight
from ..state.decided import by_hand
from ..state.errors import MergdError, NotPermitted, Usage
from ..state.headers import open_regular, owner_of
from ..state.history import History
from ..state.records import Checkpoint
from ..state.users import name_of
from ..state.wording import quoted
from .naming import find_checkpoint
from .requests import PREEMPTING, AnyRequest, Approve, Refuse, Retry, Rollback

UNREAD = "config.json"  # lies beside the weights; nobody needs a checkpoint's
REFUSABLE = ("settling", "ready", "folding", "held", "blocked")


def approve(request: Approve, history: History, who: str) -> dict[str, Any]:
    """Let what is held wait for its fold without the reasons that it has now. Nothing is approved unless all can be."""
    rows = [find_checkpoint(history, text) for text in request.checkpoints]
    for row in rows:
        if row.state != "held":
            raise Usage(f"{row.name} is {row.state}, not held", "see: mergd list")
    with history.all_or_nothing():
        for row in rows:
            history.decided.approve(row, who)
            history.checkpoints.make_ready(row.id)
    approved = [{"name": row.name, "lifted": [reason.code for reason in row.reasons]} for row in rows]
    return {"approved": approved, "paused": history.paused()}


def refuse(request: Refuse, history: History, who: str) -> dict[str, Any]:
    """Refuse what is not folded yet; a running fold of it was abandoned before."""
    row = _to_refuse(request, history)
    history.decided.refuse(row, request.why, who)
    refusal = history.decided.all().made[-1]
    history.checkpoints.set_state(row.id, "refused", by_hand(refusal, row.place), who=who, urgent=None)
    return {"name": row.name, "was": row.state}


def _to_refuse(request: Refuse, history: History) -> Checkpoint:
    row = find_checkpoint(history, request.checkpoint)
    if row.state not in REFUSABLE:
        raise Usage(f"{row.name} is {row.state}", _instead(row))
    return row


def preempts(request: AnyRequest, history: History, task_runs: bool) -> bool:
    """Whether running work is to be abandoned before a request; one that cannot be carried out costs nobody's fold.

    task_runs: whether the work is a person's task, which goes on while folding is paused.
    """
    if isinstance(request, Refuse):
        try:
            _to_refuse(request, history)
        except Usage:
            return False
    return isinstance(request, (Rollback,) if task_runs else PREEMPTING)


def _instead(row: Checkpoint) -> str:
    return (
        f"to take it out of the model: mergd remove {quoted(row.place)}" if row.state == "folded" else "see: mergd list"
    )


def retry(request: Retry, history: History, who: str) -> dict[str, Any]:
    """Have what was refused looked at again from the start, as if it had just been seen."""
    row = find_checkpoint(history, request.checkpoint)
    if row.state != "refused":
        hint = f"mergd approve {quoted(row.place)}" if row.state == "held" else "see: mergd list"
        raise Usage(f"{row.name} is {row.state}, not refused", hint)
    history.decided.retry(row, who)
    history.checkpoints.set_state(row.id, "settling", order=None)
    return {"name": row.name, "paused": history.paused()}


def look(path: str, sight: Sight) -> dict[str, Any]:
    """Return who we are, and which files at a place we cannot read, each with its mode and owner."""
    place = Path(path)
    try:
        files = [place, *(place / name for name in os.listdir(place) if name != UNREAD)] if place.is_dir() else [place]
        sighting = sight(path)
        named = {stamp.name for stamp in sighting.stamps} if sighting else set()
        closed = [file for file in files if (file == place or file.name in named) and not _opens(file)]
    except PermissionError:
        closed = [place]
    return {"user": name_of(os.geteuid()), "cannot_read": [f"{file.name} ({owner_of(file)})" for file in closed]}


def _opens(file: Path) -> bool:
    if file.is_dir():
        return os.access(file, os.R_OK | os.X_OK)
    try:
        os.close(open_regular(file))
    except NotPermitted:
        return False
    except MergdError:
        pass  # gone, or no file: that is no question of rights
    return True
