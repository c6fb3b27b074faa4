"""Recovery: what a crash may have left is made good from the history's rows; safe to be interrupted and done again."""

import logging

from ..state.committing import Commit
from ..state.errors import DamagedFiles
from ..state.history import History
from ..state.records import Checkpoint, Reason, Version
from ..state.store import Store, size_of
from ..state.wording import decide

log = logging.getLogger(__name__)

STRIKES = 3  # attempts in a row without a verdict, then a checkpoint is held and those behind it go on
NO_FAULT = ("abandoned", "changed")  # ends of an attempt that say nothing about the checkpoint


def recover(commit: Commit, history: History) -> None:
    """Bring files and link to what the history says, and let checkpoints wait again whose fold a crash ended."""
    commit.recover()
    for row in history.checkpoints.in_state("folding"):
        log.warning("the fold of %s was ended by a crash", row.name)
        wait_again(row, history)


def check_head(store: Store, history: History) -> None:
    """Raise DamagedFiles if the head is known to be damaged, or its published files have other sizes: it is not folded onto."""
    head = history.head()
    if head is None:
        return
    if head.damaged is not None:
        raise DamagedFiles(f"{head} is damaged: {head.damaged}", *head.damaged.split(", "))
    if files := damage_of(head, store):
        raise DamagedFiles(f"the published files of {head} are not as they were written", *files)


def damage_of(version: Version, store: Store) -> list[str]:
    """Return which published files of a version are gone, or have another size than was written; reads none of them."""
    try:
        promised = store.promised(version.number, "model")
    except DamagedFiles as error:
        return list(error.files)
    return [name for name, file in promised.items() if size_of(store.root / name) != file.size]


def wait_again(row: Checkpoint, history: History, strikes: int = STRIKES) -> Checkpoint:
    """Let a checkpoint wait for another attempt; after so many without a verdict it is held for a person."""
    failures = 0
    for attempt in reversed(history.checkpoints.attempts(row.id)):
        if attempt.outcome in NO_FAULT:
            continue
        if attempt.outcome is not None and not attempt.outcome.startswith("error"):
            break
        failures += 1
    if failures < strikes:
        return history.checkpoints.make_ready(row.id)
    reason = Reason(
        "no-verdict",
        f"{failures} attempts that ended without a verdict (a crash, or an error in the log)",
        "a fold that ends",
        f"look into the log; {decide(row.place)}",
    )
    log.error("%s is held: %s", row.name, reason, extra={"checkpoint": row.name, "reason": reason.code})
    return history.checkpoints.set_state(row.id, "held", reason, urgent=None)
