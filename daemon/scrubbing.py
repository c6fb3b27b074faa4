"""Scrubbing: which version's files are read next, and what follows from what was found; on the loop's thread."""

import logging
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

from ..state.errors import Damaged
from ..state.history import History
from ..state.records import Move, Version
from ..state.store import FOLDERS, PARTS, Store
from ..state.wording import quoted
from .checker import Checker, Finding
from .recovery import damage_of
from .requests import taken_out
from .verifying import Verifying

log = logging.getLogger(__name__)

WHO = "mergd"  # of moves and pauses that nobody asked for
RETRY_AFTER = 30.0  # seconds, after a check that could not be done
DAY = 86400.0  # seconds: a head that was never read is, after so long


class Scrubbing:
    """The checks of one merge's files."""

    def __init__(
        self,
        store: Store,
        history: History,
        period: Callable[[], float],
        hooks: Callable[[], list[str]],
        wake: Callable[[], None],
    ) -> None:
        self.verifying = Verifying(store, history)
        self._store, self._history, self._period, self._hooks = store, history, period, hooks
        self._checker = Checker(store, wake)
        self.fell_back = False  # in this life, from a damaged head
        self._hinted: datetime | None = None  # when: what was due by then is read, once
        self._not_before = 0.0  # monotonic seconds: after a check that could not be done

    @property
    def resting(self) -> bool:
        """Whether nothing is being read, or about to be."""
        return self._checker.version is None and self._hinted is None and self._urgent() is None

    @property
    def trouble(self) -> str:
        """What is wrong with the head, if anything is known."""
        head = self._history.head()
        return f"{head} is damaged: {head.damaged}" if head is not None and head.damaged else ""

    def hint(self) -> None:
        """Have read what is due."""
        self._hinted = datetime.now(UTC)

    def look_at_head(self) -> None:
        """Record what is wrong with the head's published files by their sizes, without reading any."""
        head = self._history.head()
        if head is not None and (files := damage_of(head, self._store)):
            self.contain(head, files)

    def turn(self, folding: bool, mending: bool) -> bool:
        """Take what was found, and begin what is due; a fold goes first. Returns whether anything was written.

        mending: whether somebody has files made once more.
        Raises Damaged if the head is damaged, there is no other version to serve, and nobody mends it.
        """
        checker, written = self._checker, False
        if checker.ended():
            written = self._take()
        urgent = self._urgent()
        if urgent is None and not mending:
            self._check_hope()
        if urgent is not None and checker.version not in (None, urgent.number):
            checker.give_way()
        checker.hold(folding)
        if checker.version is None and time.monotonic() >= self._not_before:
            version = urgent or self._due()
            if version is not None:
                parts = [part for part in PARTS if version.keeps(part)]
                checker.start(version.number, parts, hurried=urgent is not None)
        return written

    def close(self) -> None:
        """Stop reading."""
        self._checker.close()

    # ----------------------------------------------------------------------------------------------------- what next

    def _urgent(self) -> Version | None:
        """Return the version that somebody waits for: who reads a damaged model, or who asked."""
        head, wanted = self._history.head(), self.verifying.next()
        if head is None or not head.harmed("model"):
            return wanted
        others = self._history.besides_head()
        return others[0] if others else wanted

    def _check_hope(self) -> None:
        head = self._history.head()
        if head is not None and head.harmed("model") and not self._history.besides_head():
            hint = f"to have it made once more: mergd replay {head}; or bring its files back, then mergd verify"
            raise Damaged(f"{head} is damaged ({head.damaged}), and no other version is sound", hint)

    def _due(self) -> Version | None:
        """Return the version whose time has come: a head that was rolled back to, or looks different, before all."""
        if self._hinted is None:
            return None
        head, moves = self._history.head(), self._history.moves(1)
        if head is not None and not head.damaged and (self._unread(head, moves[0]) or self._looks_different(head)):
            return head
        version = due(self._history.with_files(), head, self._hinted, self._period())
        if version is None:
            self._hinted = None
        return version

    def _unread(self, head: Version, move: Move) -> bool:
        return move.why == "rollback" and (head.checked_at is None or head.checked_at < move.at)

    def _looks_different(self, head: Version) -> bool:
        return bool(self._store.changed(head.stamps, "model"))

    # ------------------------------------------------------------------------------------------------ what was found

    def _take(self) -> bool:
        found = self._checker.take()
        if found is None:  # the log says why
            self._not_before = time.monotonic() + RETRY_AFTER
            self._hinted = None
            return False
        self._record(found)
        return True

    def _record(self, found: Finding) -> None:
        """Write what a check found; a damaged head gives way to the nearest version that was just found sound."""
        version = self._history.version(found.version)
        assert version is not None
        gone = tuple(f"{FOLDERS[part]}/" for part in PARTS if not version.keeps(part))  # retention took them meanwhile
        files = [name for name in found.damaged if not name.startswith(gone)]
        head = self._history.head()
        if files:
            self.contain(version, files)
        else:
            log.info("%s was read whole and is sound", version)
            self._history.checks.sound(version.number, found.stamps)
            if head is not None and head.harmed("model") and version.number != head.number:
                self._fall_back(head, version)
        self.verifying.found(version, files)

    def contain(self, version: Version, files: Sequence[str], folding: bool = False) -> None:
        """Record damage. Nothing is folded onto it: if it is the head, or was being folded onto, folding is paused."""
        self._history.checks.damaged(version.number, files)
        log.error("%s is damaged: %s", version, ", ".join(files), extra={"version": version.number})
        head = self._history.head()
        if folding or (head is not None and head.number == version.number):
            offers = [
                f"to go on from {other}, the nearest: mergd rollback {other}; mergd resume"
                for other in self._history.besides_head()[:1]
            ]
            offers.append(f"to have it made once more: mergd replay {version}; mergd resume")
            self._pause(f"{version} is damaged ({', '.join(files)}); {'; '.join(offers)}")

    def _fall_back(self, head: Version, to: Version) -> None:
        """Move the head away from damage, and say what that takes out of the model: a person decides how to go on."""
        out = taken_out(self._history, head, to)
        self.fell_back = True
        self._history.move_head(to.number, WHO, "damage", self._hooks())
        log.error("the head is %s now, because %s is damaged", to, head)
        back = f"; folded since: {', '.join(item['name'] for item in out)}" if out else ""
        again = f"; mergd fold --again {' '.join(quoted(item['place']) for item in out)}" if out else ""
        self._pause(f"{head} is damaged ({head.damaged}), the head is {to} now{back}; to go on: mergd resume{again}")

    def _pause(self, why: str) -> None:
        before = self._history.paused()
        if before is not None and before["who"] != WHO:
            why += f" (it was paused by {before['who']}: {before['why'] or 'no reason given'})"
        self._history.pause(WHO, why)


def due(versions: Sequence[Version], head: Version | None, now: datetime, period: float) -> Version | None:
    """Return the version to be read now, if one is: the head if it never was, then what was read longest ago.

    Each is due a period, in seconds, after it was read or written, and a head that was never read after a day. What is
    known to be damaged is not read again; a period of 0 means never.
    """
    ages = {version.number: _age(version, now) for version in versions if version.damaged is None}
    if not period or not ages:
        return None
    if head is not None and head.number in ages and head.checked_at is None and ages[head.number] >= min(period, DAY):
        return head
    oldest = max((version for version in versions if version.number in ages), key=lambda v: (ages[v.number], -v.number))
    return oldest if ages[oldest.number] >= period else None


def _age(version: Version, now: datetime) -> float:
    read = datetime.fromisoformat(version.checked_at or version.created_at).astimezone(UTC)
    return (now - read).total_seconds()
