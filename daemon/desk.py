"""The desk: what people ask is recorded, done and answered here, by the thread that writes the history."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..state.errors import MergdError, Usage
from ..state.history import History
from ..state.records import Sighting
from ..state.store import Store
from . import deciding, requests
from .control import Answer, Ask
from .verifying import Verifying, verify_here

if TYPE_CHECKING:  # a rollback needs no torch
    from .intake import Intake

log = logging.getLogger(__name__)


SAY_EVERY = 1.0  # seconds


@dataclass
class _Waiting:
    ask: Ask
    rows: list[int]


class Desk:
    """Takes the requests of one merge. A fold is answered when its checkpoints have their verdicts."""

    def __init__(
        self,
        history: History,
        store: Store,
        intake: "Intake | None",
        sight: Callable[[Path], Sighting | None],
        hooks: list[str],
    ) -> None:
        self.verifying: Verifying | None = None  # where files are read aside, if anywhere
        self.again: set[int] = set()  # checkpoints that a person wants back
        self._history, self._store, self._intake, self._sight, self.hooks = history, store, intake, sight, hooks
        self._said_at = 0.0  # monotonic seconds
        self.waiting: list[_Waiting] = []  # asked folds without an answer yet

    def carry_out(self, ask: Ask) -> None:
        """Record a request, act, and answer it or let it wait for its folds. A look changes nothing, and leaves no row."""
        if isinstance(ask.request, requests.Look):
            ask.result(deciding.look(Path(ask.request.place), self._sight))
            return
        number = self._history.record_request(ask.request.verb, ask.request.model_dump(exclude={"verb"}), ask.who)
        try:
            result = self._act(ask)
        except Exception as error:  # noqa: BLE001 - whatever a request ends with is its answer; the daemon goes on
            self._history.record_answer(number, f"error: {error}")
            ask.error(as_answer(error))
            return
        self._history.record_answer(number, "queued" if result is None else "done")
        if result is not None:
            ask.result(result)

    def _act(self, ask: Ask) -> Answer | None:
        match ask.request:
            case requests.Rollback() as request:
                return requests.rollback(request, self._history, self._store, self.hooks, ask.who)
            case requests.Pause() as request:
                return requests.pause(request, self._history, ask.who)
            case requests.Resume():
                return requests.resume(self._history)
            case requests.Fold() as request:
                assert self._intake is not None, "folding needs the whole loop"
                rows = requests.queue(request, self._history, self._store, self._intake, self._sight)
                self.again.update(rows if request.again else ())
                self.waiting.append(_Waiting(ask, rows))
                return None
        return self._decide(ask)

    def _decide(self, ask: Ask) -> Answer | None:
        match ask.request:
            case requests.Approve() as request:
                return deciding.approve(request, self._history, ask.who)
            case requests.Refuse() as request:
                return deciding.refuse(request, self._history, ask.who)
            case requests.Retry() as request:
                return deciding.retry(request, self._history, ask.who)
            case requests.Verify() as request:
                if self.verifying is None:
                    return verify_here(request, self._history, self._store)
                self.verifying.begin(ask, request)
                return None
        raise Usage(f"nobody does {ask.request.verb}")

    def say(self, progress: str) -> None:
        """Tell those who wait how far it is, now and then."""
        if time.monotonic() - self._said_at < SAY_EVERY:
            return
        self._said_at = time.monotonic()
        for waiting in self.waiting:
            waiting.ask.progress(progress)

    def answer_folds(self, stuck: MergdError | None) -> None:
        """Answer those whose checkpoints all have a verdict; and the others with `stuck`, which keeps them queued."""
        for waiting in list(self.waiting):
            rows = [self._history.checkpoints.get(row) for row in waiting.rows]
            if any(row.state in ("ready", "folding", "settling") for row in rows):
                if stuck is not None:
                    self.waiting.remove(waiting)
                    waiting.ask.error(stuck)
                continue
            self.waiting.remove(waiting)
            head = self._history.head()
            folded = [
                {"name": r.name, "state": r.state, "reasons": [str(reason) for reason in r.reasons]} for r in rows
            ]
            waiting.ask.result({"head": head.number if head else None, "checkpoints": folded})

    def close(self, error: MergdError) -> None:
        """Tell everybody who still waits why there will be no answer."""
        for waiting in self.waiting:
            waiting.ask.error(error)
        self.waiting.clear()
        if self.verifying is not None:
            self.verifying.close(error)


def as_answer(error: Exception) -> MergdError:
    """Return an error as one that can be sent; one that nobody foresaw is logged whole."""
    if isinstance(error, MergdError):
        return error
    log.error("a request failed", exc_info=error)
    return MergdError(f"unforeseen: {type(error).__name__}: {error}", "the daemon's log says more")
