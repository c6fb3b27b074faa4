"""Tells systemd how the daemon is doing (sd_notify(3)); without systemd nothing happens."""

import os
import socket
import time
from collections.abc import Callable

PINGS = 10  # in the time after which systemd takes silence for a hang
STATUS_EVERY = 1.0  # seconds between two statuses
PATIENCE = 5.0  # seconds that a message may wait, where systemd has not read those before
STARTS_FOR = 300.0  # seconds that a start may take until its next step: a slow Hub's client tells of 10 MB at once


def notify(*lines: str) -> None:
    """Send lines such as "READY=1" as one datagram; a name with a newline in it adds no line."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    text = "\n".join("".join(c if c.isprintable() else "?" for c in line) for line in lines)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            sender.settimeout(PATIENCE)
            sender.sendto(text.encode(errors="replace"), address)
    except OSError:
        pass  # systemd is gone or busy, or no descriptor is free: it will ask in its own way


def reloading() -> None:
    """Say that the configuration is being read again."""
    notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")


def starts(status: str) -> None:
    """Say what a start is about, and that it may take a while longer: it gets on."""
    notify(f"STATUS={status}", f"EXTEND_TIMEOUT_USEC={int(STARTS_FOR * 1e6)}")


def _status(status: str) -> None:
    notify(f"STATUS={status}")


class Watchdog:
    """Tells systemd that the daemon gets on: never by the clock alone, so that silence means that it hangs."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        asked, whom = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID", "")
        mine = asked.isdecimal() and whom in ("", str(os.getpid()))
        self._every = int(asked) / 1e6 / PINGS if mine else None
        self._now = now
        self._at = float("-inf")
        self._steps: int | None = None

    def beat(self, steps: int | None, deadline: float | None) -> None:
        """Say that the daemon's loop has come round, unless what it waits for has not got on since the last time.

        steps: how many steps that has taken, in its life; None if nothing is waited for. deadline: until when
        (monotonic seconds) somebody else is waited for, who is ended then.
        """
        now = self._now()
        if self._every is None or now - self._at < self._every:
            return
        if steps is None or steps != self._steps or (deadline is not None and now < deadline):
            self._at, self._steps = now, steps
            notify("WATCHDOG=1")


class Status:
    """The line that `systemctl status` shows; told when it is another one, at most once a second."""

    def __init__(self) -> None:
        self._told, self._at = "", float("-inf")

    def tell(self, status: Callable[[], str], say: Callable[[str], None] = _status, *, again: bool = False) -> None:
        """Tell it, if it is time; by `say`. `again`: even if it is the same."""
        if "NOTIFY_SOCKET" not in os.environ or time.monotonic() - self._at < STATUS_EVERY:
            return
        self._at, text = time.monotonic(), status()
        if again or text != self._told:
            self._told = text
            say(text)
