"""Recovery: what a crash may have left is made good from the history's rows; safe to be interrupted and done again."""

import logging

from ..state.errors import Damaged
from ..state.history import History
from ..state.records import Checkpoint, Reason
from ..state.store import Store
from ..state.wording import decide

log = logging.getLogger(__name__)

STRIKES = 3  # attempts in a row without a verdict, then a checkpoint is held and those behind it go on
NO_FAULT = ("abandoned", "changed")  # ends of an attempt that say nothing about the checkpoint


def recover(store: Store, history: History) -> None:
    """Sweep what has no row, set the link from the head, and let checkpoints wait again whose fold a crash ended."""
    ahead = [number for number in store.numbers() if number > history.next_number()]
    if ahead:
        raise Damaged(
            f"versions up to {max(ahead)} lie in {store.versions}, which the history does not know",
            "it is older than its files: bring the newer mergd.db back; nothing was removed",
        )
    versions = history.versions()
    for path in store.sweep((v.number for v in versions), (v.number for v in versions if v.kept)):
        log.info("swept %s", path)
    head = history.head()
    if head is not None and store.pointed() != head.number:
        store.point(head.number)
    for row in history.checkpoints.in_state("folding"):
        log.warning("the fold of %s was ended by a crash", row.name)
        wait_again(row, history)


def check_head(store: Store, history: History) -> None:
    """Raise Damaged if the head's published files are not as they were written: it is neither served nor folded on."""
    head = history.head()
    if head is not None and not store.whole(head.number):
        raise Damaged(
            f"the published files of {head} are not as they were written", "see mergd log, then mergd rollback"
        )


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
    log.error("%s is held: %s", row.name, reason)
    return history.checkpoints.set_state(row.id, "held", reason, urgent=None)
