"""The folding thread: one piece of work at a time, which can be abandoned."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from traceback import clear_frames
from typing import Generic, TypeVar

from ..state.errors import Abandoned
from ..state.store import Draft
from .machine import settle_threads
from .progress import Progress

Job = TypeVar("Job")


class Hands(Generic[Job]):
    """Does work aside, so that the thread that writes the history stays awake."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self.progress = Progress()
        self.job: Job | None = None  # what is being done, or was done and is not taken yet
        self._wake = wake
        self._thread = ThreadPoolExecutor(1, "mergd-fold", settle_threads, (1,))
        self._future: Future[object] | None = None
        self._abandoned: Future[object] | None = None

    @property
    def free(self) -> bool:
        """Whether a job can be started: abandoned work may take a while until its next step, where it ends."""
        return self.job is None and (self._abandoned is None or self._abandoned.done())

    def start(self, job: Job, work: Callable[[Progress], object]) -> None:
        """Begin a job; `wake` is called when it has ended."""
        assert self.free
        self.progress.abandon.clear()
        self.job, self._abandoned = job, None
        self._future = self._thread.submit(work, self.progress)
        self._future.add_done_callback(lambda _: self._wake())

    def ended(self) -> bool:
        """Whether a job waits to be taken."""
        return self._future is not None and self._future.done()

    def take(self) -> tuple[Job, object]:
        """Return the job that has ended, and what it made or raised; waits for it."""
        assert self.job is not None
        assert self._future is not None
        job, future = self.job, self._future
        self.job = self._future = None
        try:
            return job, future.result()
        except Exception as error:  # noqa: BLE001 - whatever a job ends with is recorded with what it was about
            clear_frames(error.__traceback__)  # the weights in them, for which the next fold may need the memory
            return job, error

    def abandon(self) -> tuple[Job, Exception] | None:
        """Let go of a job, at once: it stops at its next step, and what it made is dropped then. Returns it."""
        if self.job is None or self._future is None:
            return None
        self.progress.abandon.set()
        job, self._abandoned = self.job, self._future
        self.job = self._future = None
        self._abandoned.add_done_callback(_drop)
        return job, Abandoned()

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown()


def _drop(future: "Future[object]") -> None:
    """Drop the draft that abandoned work had made by the time it was told to stop."""
    draft = getattr(future.result(), "draft", None) if future.exception() is None else None
    if isinstance(draft, Draft):
        draft.drop()
