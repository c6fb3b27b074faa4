"""The hook that pushes each move of the head to a repository of the Hub, on a thread of its own, until it is there."""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

from ...state.errors import Busy, MergdError, Unavailable
from ...state.records import News
from ..sources.hub.backoff import Backoff
from ..sources.hub.client import Limited
from ..sources.hub.target import Done, Push, Rejected, Target, Withheld

log = logging.getLogger(__name__)

FORBIDDEN = 900.0  # seconds after which what only the operator can mend is tried again
DAY = 86400.0  # seconds after which what was set aside is
LOOKS_UP = 2.0  # seconds for which an end waits for the thread: what it leaves half done is made good at the next start


MakeTarget = Callable[[Callable[[], bool]], Target]  # is given what says that it is to end


class Book(Protocol):
    """What is known of the moves, and kept of the pushes; for the thread that tells."""

    def plan(self, news: News) -> Push | None:
        """Return what is to be pushed, if it still is."""
        ...

    def plan_aside(self, news: News) -> Push | None:
        """Return the same, by what was written meanwhile; for the thread that pushes."""
        ...

    def note(self, push: Push, commit: str) -> None:
        """Keep that it was pushed."""
        ...

    def rest(self, backoff: Backoff) -> None:
        """Keep how long the Hub is left alone."""
        ...


@dataclass(frozen=True)
class _Ended:
    """How a push ended: with what it came to, or with an error."""

    push: Push
    done: Done | None = None
    error: MergdError | None = None


class HubPush:
    """Pushes one move after the other. What is owed is told again until then, each time with Busy as the answer."""

    def __init__(self, target: MakeTarget, book: Book, wake: Callable[[], None], backoff: Backoff) -> None:
        """`wake` is called, from another thread, when this is to be told again."""
        self._make, self._book, self._wake, self._backoff = target, book, wake, backoff
        self._go_on, self._closing = threading.Event(), False
        self._thread: threading.Thread | None = None
        self._over = False  # what the thread was for
        self._ended: _Ended | None = None
        self._settings = 0  # how often there were others: what was begun by earlier ones ends
        self._set_aside = 0  # the move that is
        self._until = 0.0  # monotonic seconds: until then
        self._resting = False
        self._trouble = ""  # what went wrong last
        self._astray: dict[int, str] = {}  # what is wrong with the tags of versions
        self.doing = ""

    @property
    def trouble(self) -> str:
        """What went wrong last, or what somebody should mend."""
        return self._trouble or "; ".join(self._astray.values())

    def tell(self, news: News) -> None:
        """Push it; returns once it is there, or is not to be any more. Raises Busy until then."""
        if self._thread is not None and not self._over:
            raise Busy(self.doing)
        ended = self._take(news)
        if ended is not None and ended.done:
            self._succeed(ended.push, ended.done)
            return
        push = self._book.plan(news)
        if push is None:
            self._set_aside, self._trouble = 0, ""
            return
        if ended is not None and ended.error:
            self._fail(ended.error, push)
        if self._passes_over(push, tried=ended is not None):
            log.warning("v%d is passed over", push.version)
            return
        self._begin(push, news)
        raise Busy(self.doing)

    def _take(self, news: News) -> _Ended | None:
        ended, self._ended = self._ended, None
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        return ended if ended is not None and ended.push.move == news.id else None

    def _passes_over(self, push: Push, *, tried: bool) -> bool:
        """Whether a push that was set aside is given up: the head has moved on, and it was tried once more since."""
        if self._set_aside != push.move or time.monotonic() >= self._until:
            return False
        if push.last:
            raise Busy(self.trouble)
        return tried

    def _succeed(self, push: Push, done: Done) -> None:
        self._book.note(push, done.commit)
        self._set(Backoff())
        self._set_aside, self._trouble = 0, ""
        log.info("v%d is pushed as %s", push.version, done.commit[:12])
        if done.astray:
            log.warning("%s", done.astray)
            self._astray[push.version] = done.astray

    def _fail(self, error: MergdError, push: Push) -> None:
        """Note what went wrong, and for how long nothing is tried."""
        waits = isinstance(error, Unavailable)  # then there is nothing to be done
        trouble = str(error) if waits or not error.hint else f"{error}; {error.hint}"
        if trouble != self._trouble:
            log.warning("v%d is not pushed: %s (%s)", push.version, error, error.hint)
        self._trouble = trouble
        self._set_aside = push.move if isinstance(error, Withheld | Rejected) else 0
        if self._set_aside:
            self._until = time.monotonic() + DAY
            return
        seconds = error.seconds if isinstance(error, Limited) else None
        backoff = self._backoff.failed(time.time(), seconds)
        self._set(backoff if waits else replace(backoff, until=time.time() + FORBIDDEN))

    def _set(self, backoff: Backoff) -> None:
        if backoff != self._backoff:
            self._backoff = backoff
            self._book.rest(backoff)

    # --------------------------------------------------------------------------------------------------- on its thread

    def _begin(self, push: Push, news: News) -> None:
        """Push it; or rest, if it is not time yet: what is to be pushed is planned again after that."""
        rest = self._backoff.until - time.time() if self._backoff.rests(time.time()) else 0.0
        self._go_on.clear()
        self._resting, self._over = rest > 0, False
        self.doing = "" if self._resting else f"pushing v{push.version}"
        do, arguments = (self._go_on.wait, (rest,)) if rest > 0 else (self._push, (push, news, self._settings))
        self._thread = threading.Thread(target=self._do, args=(do, *arguments), name="mergd-push", daemon=True)
        self._thread.start()

    def _do(self, do: Callable[..., object], *arguments: object) -> None:
        """Do it, and have the rest done by the thread that tells."""
        try:
            do(*arguments)
        finally:
            self.doing, self._over = "", True
            if not self._closing:
                self._wake()

    def _push(self, push: Push, news: News, settings: int) -> None:
        """Push it by the settings that there are, and note how that ended, whatever it is."""

        def stopped() -> bool:
            return self._closing or self._settings != settings

        try:
            target = self._make(stopped)
            done = target.push(push, partial(self._say, push), lambda: self._book.plan_aside(news))
            self._ended = _Ended(push, done)
        except MergdError as error:
            self._ended = None if stopped() else _Ended(push, error=error)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is no reason to stop folding
            log.error("v%d could not be pushed: %s", push.version, type(error).__name__)
            self._ended = _Ended(push, error=Unavailable(f"an end of this error: {type(error).__name__}"))

    def _say(self, push: Push, how: str) -> None:
        self.doing = "" if self._closing else f"pushing v{push.version}" + (f": {how}" if how else "")

    # ------------------------------------------------------------------------------------------------------- its life

    @property
    def busy(self) -> bool:
        """Whether something is being pushed now."""
        return self._thread is not None and not self._resting

    def again(self, target: MakeTarget, *, stop: bool) -> None:
        """Try again at once what failed or was set aside, by other settings; `stop` what is pushed by earlier ones."""
        self._make = target
        self._settings += stop
        self._set(Backoff())
        self._set_aside = 0
        self._astray.clear()
        self._go_on.set()

    def close(self) -> None:
        """End the thread, or leave it behind where the Hub keeps silent: nothing is lost."""
        self._closing = True
        self._go_on.set()
        if self._thread is not None:
            self._thread.join(LOOKS_UP)
        self.doing = ""
