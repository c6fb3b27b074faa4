"""Tells systemd how the daemon is doing (sd_notify(3)); without systemd nothing happens."""

import os
import socket
import time


def notify(*lines: str) -> None:
    """Send lines such as "READY=1" as one datagram."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        try:
            sender.sendto("\n".join(lines).encode(), address)
        except OSError:
            pass  # systemd is gone or busy: it will ask in its own way


def reloading() -> None:
    """Say that the configuration is being read again."""
    notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
