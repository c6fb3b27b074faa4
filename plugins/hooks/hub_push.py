"""The hook that pushes each move of the head to a repository of the Hub, on a thread of its own, until it is there."""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

from ...state.errors import Busy, MergdError, Unavailable
from ...state.records import News
from ..sources.hub.backoff import Backoff
from ..sources.hub.client import Limited
from ..sources.hub.target import Push, Target, Withheld

log = logging.getLogger(__name__)

FORBIDDEN = 900.0  # seconds after which what only the operator can mend is tried again
LOOKS_UP = 2.0  # seconds for which an end waits for the thread: what it leaves half done is made good at the next start


MakeTarget = Callable[[Callable[[], bool]], Target]  # is given what says that it is to end


class Book(Protocol):
    """What is known of the moves, and kept of the pushes; for the thread that tells."""

    def plan(self, news: News) -> Push | None:
        """Return what is to be pushed, if it still is."""
        ...

    def note(self, push: Push, commit: str) -> None:
        """Keep that it was pushed."""
        ...

    def rest(self, backoff: Backoff) -> None:
        """Keep how long the Hub is left alone."""
        ...


@dataclass(frozen=True)
class _Ended:
    """How a push ended: with its commit, or with an error."""

    push: Push
    commit: str = ""
    error: MergdError | None = None


class HubPush:
    """Pushes one move after the other. What is owed is told again until then, each time with Busy as the answer."""

    def __init__(self, target: MakeTarget, book: Book, wake: Callable[[], None], backoff: Backoff) -> None:
        """`wake` is called, from another thread, when this is to be told again."""
        self._target, self._book, self._wake, self._backoff = target(self.stopped), book, wake, backoff
        self._go_on, self._closing = threading.Event(), False
        self._thread: threading.Thread | None = None
        self._ended: _Ended | None = None
        self._withheld = 0  # the move that is
        self._resting = False
        self.doing = ""
        self.trouble = ""  # what went wrong last

    def tell(self, news: News) -> None:
        """Push it; returns once it is there, or is not to be any more. Raises Busy until then."""
        if self._thread is not None and self._ended is None:
            raise Busy(self.doing)
        ended = self._take()
        if ended is not None and ended.push.move == news.id and ended.commit:
            self._succeed(ended.push, ended.commit)
            return
        push = self._book.plan(news)
        if push is None:
            self._withheld, self.trouble = 0, ""
            return
        if ended is not None and ended.push.move == news.id and ended.error:
            self._fail(ended.error, push)
        if self._withheld == news.id:
            if push.last:
                raise Busy(self.trouble)
            if ended is not None:  # and the head has moved on
                log.warning("v%d stays withheld", push.version)
                return
        self._begin(push)
        raise Busy(self.doing)

    def _take(self) -> _Ended | None:
        ended, self._ended = self._ended, None
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        return ended

    def _succeed(self, push: Push, commit: str) -> None:
        self._book.note(push, commit)
        self._set(Backoff())
        self._withheld, self.trouble = 0, ""
        log.info("v%d is pushed to %s as %s", push.version, self._target.repo, commit[:12])

    def _fail(self, error: MergdError, push: Push) -> None:
        """Note what went wrong, and for how long nothing is tried."""
        if str(error) != self.trouble:
            log.warning("v%d is not pushed: %s (%s)", push.version, error, error.hint)
        self.trouble = str(error)
        self._withheld = push.move if isinstance(error, Withheld) else 0
        if self._withheld:
            return
        seconds = error.seconds if isinstance(error, Limited) else None
        backoff = self._backoff.failed(time.time(), seconds)
        if not isinstance(error, Unavailable):
            backoff = replace(backoff, until=time.time() + FORBIDDEN)
        self._set(backoff)

    def _set(self, backoff: Backoff) -> None:
        if backoff != self._backoff:
            self._backoff = backoff
            self._book.rest(backoff)

    # --------------------------------------------------------------------------------------------------- on its thread

    def _begin(self, push: Push) -> None:
        rest = self._backoff.until - time.time() if self._backoff.rests(time.time()) else 0.0
        self._go_on.clear()
        self._resting = rest > 0
        self.doing = "" if self._resting else f"pushing v{push.version}"
        self._thread = threading.Thread(target=self._do, args=(push, rest), name="mergd-push", daemon=True)
        self._thread.start()

    def _do(self, push: Push, rest: float) -> None:
        """Rest, then push; note how that ended, whatever it is, and have the rest done by the thread that tells."""
        self._go_on.wait(rest)
        self._resting = False
        try:
            if self._closing:
                return
            self._say(push, "")
            self._ended = _Ended(push, self._target.push(push, lambda how: self._say(push, how)))
        except MergdError as error:
            self._ended = _Ended(push, error=error)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is no reason to stop folding
            log.error("v%d could not be pushed: %s", push.version, type(error).__name__)
            self._ended = _Ended(push, error=Unavailable(f"an end of this error: {type(error).__name__}"))
        finally:
            self.doing = ""
            if not self._closing:
                self._wake()

    def _say(self, push: Push, how: str) -> None:
        self.doing = "" if self._closing else f"pushing v{push.version}" + (f": {how}" if how else "")

    # ------------------------------------------------------------------------------------------------------- its life

    @property
    def busy(self) -> bool:
        """Whether something is being pushed now."""
        return self._thread is not None and not self._resting

    def again(self, target: MakeTarget) -> None:
        """Try again at once what failed or was withheld, by other settings."""
        self._target = target(self.stopped)
        self._set(Backoff())
        self._withheld = 0
        self._go_on.set()

    def stopped(self) -> bool:
        """Whether a push is to end."""
        return self._closing

    def close(self) -> None:
        """End the thread, or leave it behind where the Hub keeps silent: nothing is lost."""
        self._closing = True
        self._go_on.set()
        if self._thread is not None:
            self._thread.join(LOOKS_UP)
        self.doing = ""
