"""The daemon's life: it starts, loops and stops. The clock, the folder's events, the socket and signals leave messages."""

import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import FrameType

from apscheduler.schedulers.background import BackgroundScheduler

from ..state.errors import MergdError
from .control import Control
from .loop import Loop
from .notify import Status, Watchdog, notify, reloading, starts
from .observing import Observing
from .progress import Progress
from .settings import Settings
from .webhook import Knocking

log = logging.getLogger(__name__)

UPKEEP_EVERY = 3600  # seconds
SCRUB_EVERY = 3600  # seconds between looks at what is due
LOG_EVERY = 10.0  # seconds between lines about a running fold
STOPS_WITHIN = 8.0  # seconds: what then still runs is worth nothing, as after a kill
JOB = {"misfire_grace_time": None, "coalesce": True, "max_instances": 1}  # late is better than never, once is enough


class Service:
    """The daemon of one merge."""

    def __init__(self, settings: Settings, reread: Callable[[], Settings], name: str = "mergd") -> None:
        """`name` is the merge's, for those who look at the figures of several."""
        self._settings, self._reread = settings, reread
        self._loop = Loop(settings, "mergd run", show=self._show)
        self._ready = False
        self._watchdog, self._status = Watchdog(), Status()
        self._error: Exception | None = None  # that ends it
        self._refused = ""  # why the configuration that was read last is not in use, if so
        self._clock = BackgroundScheduler(timezone="UTC")
        self._observing = Observing(settings, name, Knocking(self._loop.poll, self._later).knock)
        self._loop.told = self._observing.told
        self._logged_at = 0.0  # monotonic seconds

    def run(self) -> None:
        """Start, loop until a signal says to stop, and stop. Raises what only the operator can mend."""
        with self._loop, self._observing:
            self._loop.push()  # which needs its token: before there are threads that would have to end
            control = self._start()
            try:
                self._ready = True
                notify("READY=1", f"STATUS={self._brief()}")
                log.info("watching %s; every checkpoint that is admitted goes live%s", self._watched(), self._gated())
                self._loop.run()
            except Exception as error:
                self._error = error
                raise
            finally:
                if not signal.getitimer(signal.ITIMER_REAL)[0]:  # no signal said to stop
                    signal.setitimer(signal.ITIMER_REAL, STOPS_WITHIN)
                notify("STOPPING=1", "STATUS=stopping")
                self._stop(control)

    def _start(self) -> Control:
        self._loop.reread, self._loop.taken, self._loop.kept = self._read_again, self._take, self._keep
        self._loop.turned, self._loop.prepares = self._turned, True
        for number, act in (
            (signal.SIGTERM, self._on_stop),
            (signal.SIGINT, self._on_stop),
            (signal.SIGHUP, self._on_reload),
            (signal.SIGALRM, self._end_now),
        ):
            signal.signal(number, act)
        control = Control(runtime_folder(self._settings), self._loop.post)
        self._listener = threading.Thread(target=control.serve, name="mergd-control")
        self._listener.start()
        self._loop.listen_at(str(control.path))
        self._loop.watch(self._settings.events)
        self._clock.add_job(self._loop.post, "interval", ["rescan"], seconds=self._settings.rescan, id="rescan", **JOB)
        if self._settings.hub.namespace:
            hub = self._settings.hub
            self._clock.add_job(self._loop.poll, "interval", seconds=hub.poll, jitter=hub.poll / 10, id="poll", **JOB)
            self._clock.add_job(self._loop.poll, id="first poll", **JOB)
        self._clock.add_job(self._loop.post, "interval", ["upkeep"], seconds=UPKEEP_EVERY, id="upkeep", **JOB)
        self._clock.add_job(self._loop.post, "interval", ["scrub"], seconds=SCRUB_EVERY, id="scrub", **JOB)
        self._clock.start()
        self._loop.post("rescan")
        self._loop.post("upkeep")
        self._loop.post("scrub")
        return control

    def _stop(self, control: Control) -> None:
        log.info("stopping")
        self._loop.hush()
        self._clock.shutdown()
        control.deafen()
        self._loop.answer_stopping()
        control.close()
        self._listener.join()

    def _read_again(self) -> Settings:
        reloading()
        return self._reread()

    def _keep(self, error: MergdError) -> None:
        """Say that the old configuration stays, and why."""
        self._refused = f"; the old configuration is kept: {error}"
        notify("READY=1", f"STATUS={self._brief()}")

    def _take(self, settings: Settings) -> None:
        self._settings, self._refused = settings, ""
        try:
            self._clock.reschedule_job("rescan", trigger="interval", seconds=settings.rescan)
            self._loop.watch(settings.events)
            self._observing.take(settings)
        finally:  # systemd waits for it
            notify("READY=1", f"STATUS={self._brief()}")

    def _later(self, act: Callable[[], None], seconds: float) -> None:
        """Have one of the clock's threads do something."""
        self._clock.add_job(act, "date", run_date=datetime.now(UTC) + timedelta(seconds=seconds), **JOB)

    def _turned(self) -> None:
        """Tell systemd, and who looks at the figures, that the loop has come round; and what is going on."""
        self._watchdog.beat(self._loop.steps, self._loop.deadline)
        self._status.tell(self._brief)
        self._observing.turned()

    def _brief(self) -> str:
        return self._loop.brief + self._refused

    def _show(self, progress: Progress) -> None:
        """Log how far a long fold is; while starting, tell systemd that it goes on."""
        if not self._ready:
            self._status.tell(lambda: str(progress), starts, again=True)
        if progress.doing and time.monotonic() - self._logged_at > LOG_EVERY:
            self._logged_at = time.monotonic()
            log.info("%s", progress)

    def _watched(self) -> str:
        namespace = self._settings.hub.namespace
        return " and ".join(filter(None, [str(self._settings.watch or ""), namespace and f"{namespace} on the Hub"]))

    def _gated(self) -> str:
        return " after its gates" if self._settings.gates or self._settings.gate else ": no gate is set"

    def _on_stop(self, number: int, frame: FrameType | None) -> None:
        signal.setitimer(signal.ITIMER_REAL, STOPS_WITHIN)
        self._loop.stop()

    def _on_reload(self, number: int, frame: FrameType | None) -> None:
        self._loop.post("reload")

    def _end_now(self, number: int, frame: FrameType | None) -> None:
        """End in the middle of whatever does not end by itself: a decomposition, another package's gate."""
        log.warning("what does not stop by itself is left; nothing is lost")
        if (error := self._error) is not None:  # which nobody gets to see any more
            log.error("%s (%s)", error, getattr(error, "hint", ""), exc_info=not isinstance(error, MergdError))
        os._exit(0 if error is None else getattr(error, "exit_code", 1))


def runtime_folder(settings: Settings) -> Path:
    """Return where the control socket goes: systemd's runtime directory, or the state itself."""
    folders = os.environ.get("RUNTIME_DIRECTORY", "")
    return Path(folders.split(":")[0]) if folders else settings.state
