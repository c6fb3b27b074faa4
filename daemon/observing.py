"""Observing: the figures of a running daemon, in a file or at a port of this machine; nothing that fails here stops it."""

import logging
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from ..state.errors import MergdError, Misconfigured, Unavailable
from ..state.history import History
from ..state.tallies import Tally
from .judging import Given
from .settings import Settings
from .settings_tables import MetricsSettings
from .status import tell_everybody

if TYPE_CHECKING:  # imported only where something is observed
    from .figures import Facts, Figures
    from .loop import Loop
    from .serving import Server

log = logging.getLogger(__name__)

WRITE_EVERY = 15.0  # seconds between writings of the file while nothing happens
WRITE_SOON = 1.0  # the same when something has
LISTEN_AGAIN = 30.0  # seconds between tries at a port that cannot be had
STALE = 60.0  # seconds without a turn after which the loop does not count as well


class Observing:
    """What the loop tells, kept for those who look at it from other threads."""

    def __init__(self, settings: Settings, name: str, knock: Callable[[], None] = lambda: None) -> None:
        """`name` is the merge's; `knock` is called, from another thread, when the Hub says that something is new."""
        self._settings, self._knock = settings, knock
        self._name = re.sub(r"[^\w.-]", "_", name, flags=re.ASCII)[:64]
        self._started, self._turned = time.time(), time.monotonic()
        self._tally = Tally()
        self._facts: Facts | None = None
        self._key: tuple[Any, ...] = ()
        self._written, self._soon, self._failing = float("-inf"), True, ""
        self._figures: Figures | None = None
        self._server: Server | None = None
        self._tried, self._unheard = float("-inf"), ""  # monotonic seconds, and why there is no server

    def __enter__(self) -> Self:
        """Listen; a port that is taken keeps nothing from being folded. Raises Misconfigured."""
        try:
            self._open()
        except Unavailable as error:
            self._complain(error)
        return self

    def __exit__(self, *error: object) -> None:
        self._close()

    def _open(self) -> None:
        """Listen where the settings say. Raises Misconfigured or Unavailable."""
        settings, self._tried = self._settings, time.monotonic()
        if settings.metrics != MetricsSettings() and self._figures is None:
            from .figures import Figures

            self._figures = Figures(self._name, self._now)
        if settings.metrics.address is not None:
            assert self._figures is not None
            self._server = serve(settings, self._figures.text, self.ailing, self._knock)
            if self._unheard:
                log.info("the figures are at %s", settings.metrics.listen)
        self._unheard = ""

    def _open_or_complain(self) -> None:
        try:
            self._open()
        except MergdError as error:
            self._complain(error)

    def _complain(self, error: MergdError) -> None:
        """Log why there is no server, once; it is tried again."""
        if str(error) != self._unheard:
            log.warning("nobody is told of the figures: %s (%s)", error, error.hint)
        self._unheard = str(error)

    def _close(self) -> None:
        if self._server is not None:
            self._server.close()
        self._server = None

    def take(self, settings: Settings) -> None:
        """Go on with other settings; where they cannot be followed, the log says why, and it is tried again."""
        before, self._settings, self._soon = self._settings, settings, True
        listens = [(one.metrics.listen, one.hub.webhook_secret, one.hub.namespace) for one in (before, settings)]
        if self._server is None or listens[0] != listens[1]:
            self._unheard = ""
            self._close()
            self._open_or_complain()

    # ------------------------------------------------------------------------------------------ on the loop's thread

    def told(self, found: dict[str, Any], history: History, given: Given) -> None:
        """Take what the loop tells."""
        if self._figures is None:
            return
        from .figures import Facts

        self._tally = history.tallies.upto_now(self._tally)
        oldest = history.tallies.oldest("ready", "held")
        self._facts = Facts(found, self._tally, oldest, Given(given), self._started)
        key = tuple(found[name] for name in ("head", "trouble", "paused", "waiting", "refused", "held", "blocked"))
        self._soon, self._key = self._soon or key != self._key, key

    def turned(self) -> None:
        """Note that the loop turns; write the file if that is due, and try again to listen."""
        now = self._turned = time.monotonic()
        if self._unheard and now - self._tried > LISTEN_AGAIN:
            self._open_or_complain()
        path = self._settings.metrics.file
        if path is not None and self._facts and now - self._written > (WRITE_SOON if self._soon else WRITE_EVERY):
            self._written, self._soon = now, False
            self._write(path)

    def _write(self, path: Path) -> None:
        assert self._figures is not None
        try:
            tell_everybody(path, self._figures.text().decode())
            failing = ""
        except Exception as error:  # noqa: BLE001 - the figures are never worth a fold
            failing = f"{type(error).__name__}: {error}"
        if failing and failing != self._failing:
            log.error("%s is out of date: %s", path, failing)
        self._failing = failing

    # ---------------------------------------------------------------------------------------------- from any thread

    def _now(self) -> "Facts | None":
        facts, ago = self._facts, time.monotonic() - self._turned
        return replace(facts, turned=time.time() - ago) if facts is not None else None

    def ailing(self) -> str:
        """Return in a line what is wrong; empty while the loop turns and nothing is in trouble."""
        facts, ago = self._facts, time.monotonic() - self._turned
        if facts is None:
            return "it has not begun yet"
        if ago > STALE:
            return f"the loop has not turned for {ago:.0f} s"
        return " ".join(str(facts.found["trouble"]).split())


@contextmanager
def at_the_end(loop: "Loop", name: str) -> Iterator[None]:
    """Write the file of the settings once a loop that is run once has ended, however it did; there is no port."""
    settings = loop.settings
    metrics = settings.metrics.model_copy(update={"listen": ""})
    with Observing(settings.model_copy(update={"metrics": metrics}), name) as observing:
        loop.told = observing.told
        try:
            yield
        finally:
            if metrics.file is not None:
                loop.tell()
                observing.turned()


def serve(
    settings: Settings, text: Callable[[], bytes], ailing: Callable[[], str], knock: Callable[[], None]
) -> "Server":
    """Return a server that answers at the port of the settings. Raises Misconfigured or Unavailable."""
    try:
        from .serving import Server, application
    except ImportError as error:
        raise Misconfigured(f"metrics.listen needs a package: {error}", "pip install 'mergd[http]'") from None
    from .webhook import Webhook

    assert settings.metrics.address is not None
    hook = Webhook(settings.hub, knock) if settings.hub.webhook_secret else None
    return Server(application(text, ailing, hook), *settings.metrics.address)
