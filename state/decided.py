"""What people decided on checkpoints: approved, refused, or retried; and the history's rows of that."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Literal

from sqlite_utils import Database

from .clock import utc_now
from .records import ADMITTED, Checkpoint, Reason, Verdict
from .wording import quoted


@dataclass(frozen=True)
class Decision:
    """What a person decided about one content: its digest, or the fingerprint of its files where that is not known."""

    content: str
    verdict: Literal["approved", "refused", "retried"]
    code: str  # of the reason that was approved; else empty
    why: str  # that a person gave
    who: str
    at: str  # UTC, ISO 8601


@dataclass(frozen=True)
class Decisions:
    """What people decided, oldest first."""

    made: tuple[Decision, ...] = ()

    def on(self, contents: Collection[str | None]) -> tuple[Decision, ...]:
        """Return those about one of these contents."""
        return tuple(decision for decision in self.made if decision.content and decision.content in contents)

    def lift(self, verdict: Verdict, contents: Collection[str | None]) -> Verdict:
        """Return a verdict without the reasons for holding that were approved for one of these contents."""
        approved = {decision.code for decision in self.on(contents) if decision.verdict == "approved"}
        left = tuple(reason for reason in verdict.reasons if reason.code not in approved)
        if verdict.decision != "held" or left == verdict.reasons:
            return verdict
        return Verdict("held", left) if left else ADMITTED

    def refusal(self, contents: Collection[str | None]) -> Decision | None:
        """Return the refusal of one of these contents that nobody took back."""
        last = next((d for d in reversed(self.on(contents)) if d.verdict != "approved"), None)
        return last if last is not None and last.verdict == "refused" else None


class Decided:
    """Reads and writes the table `decisions`."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def all(self) -> Decisions:
        """Return every decision, oldest first."""
        rows = self._db.query("select content, verdict, code, why, who, at from decisions order by id")
        return Decisions(tuple(Decision(**row) for row in rows))

    def approve(self, row: Checkpoint, who: str) -> None:
        """Write that the reasons for which a checkpoint is held are no reasons for this content."""
        self._write(Decision(content(row), "approved", reason.code, "", who, utc_now()) for reason in row.reasons)

    def refuse(self, row: Checkpoint, why: str, who: str) -> None:
        """Write that this content is refused by a person."""
        self._write([Decision(content(row), "refused", "", why, who, utc_now())])

    def retry(self, row: Checkpoint, who: str) -> None:
        """Write that a refusal of this content is taken back."""
        self._write([Decision(content(row), "retried", "", "", who, utc_now())])

    def _write(self, decisions: Iterable[Decision]) -> None:
        self._db.table("decisions").insert_all(vars(decision) for decision in decisions)


def content(row: Checkpoint) -> str:
    """Return what a decision on a checkpoint is about: its digest, or its files as they are while that is not known.

    While there is no file that could be one of its own, it is about the place.
    """
    return row.digest or row.fingerprint or row.place


def by_hand(refusal: Decision, place: str) -> Reason:
    """Return the reason that a person's refusal is."""
    found = f"refused by {refusal.who}: {refusal.why}"
    return Reason("refused-by-hand", found, "what nobody refused", f"to take it back: mergd retry {quoted(place)}")
