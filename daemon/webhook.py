"""The Hub's webhook: a call says that something is new, and wakes a poll. What it says is a claim, and is used for nothing else."""

import hmac
import json
import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from ..state.errors import MergdError
from .credentials import read_credential
from .settings_tables import HubSettings

log = logging.getLogger(__name__)

LONGEST = 65536  # bytes of a call
SETTING = "hub.webhook_secret"
WOKEN, NOTHING_NEW, NO_CALL = 202, 204, 400  # what the Hub is answered
APART = 10.0  # seconds between polls that calls wake: at most 30 in 5 minutes, and 5 of the clock's


class Webhook:
    """What calls must bear, and which of them are about the watched namespace."""

    def __init__(self, hub: HubSettings, knock: Callable[[], None]) -> None:
        """Raises Misconfigured or NotPermitted where there is no secret to be had."""
        self._hub, self._knock = hub, knock
        read_credential(hub.webhook_secret, SETTING)

    def allows(self, secret: str) -> bool:
        """Whether a call bears the secret, as it is now; how long that takes says nothing of how much of it is right."""
        try:
            expected = read_credential(self._hub.webhook_secret, SETTING)
        except MergdError as error:
            log.error("no call of the Hub is taken: %s", error)
            return False
        return hmac.compare_digest(secret.encode(errors="replace"), expected)

    def take(self, body: bytes) -> int:
        """Wake a poll, if a call is about a model of the namespace; returns the status to answer with."""
        try:
            call = json.loads(body)
        except (ValueError, RecursionError):
            return NO_CALL
        if not self._concerns(call):
            return NOTHING_NEW
        self._knock()
        return WOKEN

    def _concerns(self, call: Any) -> bool:
        event, repo = (call.get(name) if isinstance(call, dict) else None for name in ("event", "repo"))
        if not isinstance(event, dict) or not isinstance(repo, dict) or repo.get("type") != "model":
            return False
        owner = str(repo.get("name")).partition("/")[0]
        return str(event.get("scope")).startswith("repo") and owner.casefold() == self._hub.namespace.casefold()


class Knocking:
    """Polls soon after it is knocked, on another thread: never two at once, never more often than once in `APART`."""

    def __init__(self, poll: Callable[[], None], later: Callable[[Callable[[], None], float], object]) -> None:
        """`later` calls something after so many seconds."""
        self._poll, self._later = poll, later
        self._lock, self._polling = threading.Lock(), threading.Lock()
        self._due, self._last = False, float("-inf")  # monotonic seconds

    def knock(self) -> None:
        """Have a poll begin, unless one is about to."""
        with self._lock:
            if self._due:
                return
            self._due = True
            wait = max(0.0, self._last + APART - time.monotonic())
        self._later(self._answer, wait)

    def _answer(self) -> None:
        with self._polling:
            with self._lock:  # who knocks from here on may know of something that this poll does not see
                self._due, self._last = False, time.monotonic()
            self._poll()
