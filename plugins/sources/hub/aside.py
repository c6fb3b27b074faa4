"""What is asked on a thread of its own that may be left behind: a Hub can hold up the HTTP library where no bound of ours reaches.

It does so with a header that never ends, or with many addresses that nobody answers at.
"""

import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from ....state.errors import Unavailable

MOST = 4  # threads that are left behind; while they all hang, nothing more is asked
LOOKS = 0.1  # seconds between looks at whether to stop
LATER = "it is asked again later"

T = TypeVar("T")


class Aside:
    """Asks one thing after the other."""

    def __init__(self, stopped: threading.Event) -> None:
        self._stopped = stopped
        self._left: list[threading.Thread] = []

    def ask(self, what: Callable[[], T], seconds: float) -> T:
        """Return what it returns, or raise what it raises. Raises Unavailable after so many seconds, or soon after a stop.

        What comes later than that is dropped: `what` must change nothing itself.
        """
        self._left = [thread for thread in self._left if thread.is_alive()]
        if len(self._left) >= MOST:
            raise Unavailable("the Hub took too long, several times, and still does", LATER)
        came: list[tuple[Any, Exception | None]] = []
        thread = threading.Thread(target=_do, args=(what, came), name="mergd-hub-poll", daemon=True)
        thread.start()
        until = time.monotonic() + seconds
        while thread.is_alive() and time.monotonic() < until and not self._stopped.is_set():
            thread.join(LOOKS)
        if not came:
            self._left.append(thread)
            raise Unavailable("stopping" if self._stopped.is_set() else "the Hub took too long", LATER)
        found, error = came[0]
        if error is not None:
            raise error
        return found  # type: ignore[no-any-return]


def _do(what: Callable[[], Any], came: list[tuple[Any, Exception | None]]) -> None:
    try:
        came.append((what(), None))
    except Exception as error:  # noqa: BLE001 - it is raised where it is waited for
        came.append((None, error))
