"""The folding thread: one job at a time, which can be abandoned."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from traceback import clear_frames

from ..state.errors import Abandoned, Damaged
from .drafting import Made, Outcome
from .judging import Job
from .machine import settle_threads
from .progress import Progress


class Hands:
    """Runs drafting aside, so that the thread that writes the history stays awake."""

    def __init__(self, threads: int, draft: Callable[[Job, Progress], Outcome], wake: Callable[[], None]) -> None:
        self.progress = Progress()
        self.job: Job | None = None  # what is being drafted, or was drafted and is not taken yet
        self._draft, self._wake = draft, wake
        self._thread = ThreadPoolExecutor(1, "mergd-fold", settle_threads, (threads,))
        self._future: Future[Outcome] | None = None

    def start(self, job: Job) -> None:
        """Begin a job; `wake` is called when it has ended."""
        assert self.job is None
        self.progress.abandon.clear()
        self.job = job
        self._future = self._thread.submit(self._draft, job, self.progress)
        self._future.add_done_callback(lambda _: self._wake())

    def ended(self) -> bool:
        """Whether a job waits to be taken."""
        return self._future is not None and self._future.done()

    def take(self) -> tuple[Job, Outcome | Exception]:
        """Return the job that has ended, and what it made or raised; waits for it."""
        assert self.job is not None
        assert self._future is not None
        job, future = self.job, self._future
        self.job = self._future = None
        try:
            return job, future.result()
        except Exception as error:  # noqa: BLE001 - whatever a job ends with is recorded with its checkpoint
            clear_frames(error.__traceback__)  # the weights in them, for which the next fold may need the memory
            return job, error

    def abandon(self) -> tuple[Job, Exception] | None:
        """Stop a running job at its next step, and drop what it made; returns it."""
        if self.job is None:
            return None
        self.progress.abandon.set()
        job, outcome = self.take()
        if isinstance(outcome, Made):
            outcome.draft.drop()
        return job, outcome if isinstance(outcome, Damaged) else Abandoned()

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown()
