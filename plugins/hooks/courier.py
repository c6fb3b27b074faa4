"""A courier tells one hook one notice after the other, on a thread of its own: again and again, until it is told or too old."""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from math import inf

from ...state.errors import MergdError, Misconfigured, NotPermitted
from ...state.records import Notice
from ...state.wording import cut
from ..sources.hub.backoff import Backoff
from .interface import Way

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Ended:
    """What became of a notice: told, or given up, and why."""

    notice: Notice
    lost: str = ""


class Courier:
    """Whoever gives it a notice takes what became of it, notes that, and gives it the next one."""

    def __init__(self, name: str, way: Way, retry: float, wake: Callable[[], None]) -> None:
        """`retry`: for how many seconds after it happened a notice is tried. `wake` is called when there is news of it."""
        self._name, self._way, self._retry, self._wake = name, way, retry, wake
        self._go_on, self._closing, self._resting = threading.Event(), False, False
        self._thread: threading.Thread | None = None
        self._backoff = Backoff()
        self.ended: Ended | None = None  # to be noted
        self.doing = ""
        self.trouble = ""  # what went wrong last
        self._tried = False  # else it lacked what it signs with

    @property
    def free(self) -> bool:
        """Whether it takes a notice."""
        return self._thread is None

    @property
    def busy(self) -> bool:
        """Whether a notice is on its way now, or what became of one is to be noted."""
        return self._thread is not None and not self._resting

    def give(self, notice: Notice) -> None:
        """Begin to tell it."""
        assert self.free
        self._thread = threading.Thread(
            target=self._deliver, args=(notice,), name=f"mergd-hook-{self._name}", daemon=True
        )
        self._thread.start()

    def noted(self) -> None:
        """What became of the notice is noted: the next one may come."""
        assert self._thread is not None
        self._thread.join()
        self.ended = self._thread = None

    def close(self) -> None:
        """End the thread soon, without waiting for it."""
        self._closing = True
        self._go_on.set()

    def join(self, seconds: float) -> None:
        """Wait for its end, or leave it behind where a name is being looked up."""
        if self._thread is not None:
            self._thread.join(max(0.0, seconds))

    def stopped(self) -> bool:
        """Whether it is to end."""
        return self._closing

    # --------------------------------------------------------------------------------------------------- on its thread

    def _deliver(self, notice: Notice) -> None:
        self.ended = self._tell(notice)
        self.doing = ""
        if not self._closing:
            self._wake()

    def _tell(self, notice: Notice) -> Ended | None:
        """Try until it is told, or given up; None where all is to end."""
        while not self._closing:
            if not (why := self._try(notice)):
                return Ended(notice)
            if self._closing:
                break
            if (left := self._retry - age(notice)) <= 0 and self._tried:
                log.error("hook %s: notice %d (%s) is undelivered: %s", self._name, notice.seq, notice.kind, why)
                return Ended(notice, why)
            self._rest(left if left > 0 else inf)
        return None

    def _try(self, notice: Notice) -> str:
        """Tell it once; returns what went wrong. Without its key, which only the operator can mend, that was no try."""
        self.doing = f"telling it of notice {notice.seq}"
        try:
            said = self._way.tell(notice, self.stopped)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is no reason to stop telling
            why = cut(str(error)) if isinstance(error, MergdError) else f"an end of this error: {type(error).__name__}"
            if why != self.trouble and not self._closing:
                log.warning("hook %s: notice %d (%s) is not told: %s", self._name, notice.seq, notice.kind, why)
            self.trouble, self._tried = why, not isinstance(error, Misconfigured | NotPermitted)
            return why
        finally:
            self.doing = ""
        log.info("hook %s: notice %d (%s) is told%s", self._name, notice.seq, notice.kind, f": {said}" if said else "")
        self.trouble, self._backoff = "", Backoff()
        return ""

    def _rest(self, most: float) -> None:
        now = time.time()
        self._backoff = self._backoff.failed(now)
        self._resting = True
        self._wake()  # what went wrong is to be seen
        self._go_on.wait(min(self._backoff.until - now, most))
        self._resting = False


def age(notice: Notice) -> float:
    """Return how long ago it happened, in seconds, by this machine's clock."""
    return (datetime.now(UTC) - datetime.fromisoformat(notice.at)).total_seconds()
