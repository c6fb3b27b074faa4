"""The hook that posts a notice to a web address, signed as Standard Webhooks has it; an answer of 2xx means told.

By Python's own client: no redirect is followed, no proxy used, nothing of an answer is read but its status, and all of it
ends in time. An address may be a secret from its path on, so that nothing but its host is ever shown.
"""

import base64
import binascii
import hmac
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from pathlib import Path
from urllib.parse import SplitResult, unquote, urlsplit

from ...state.errors import Misconfigured, NotPermitted, Unavailable
from ...state.records import Notice
from .interface import text_of

TICK = 0.05  # seconds between looks at whether it is to end
PREFIX = "whsec_"  # of a key that is written in base64


@dataclass(frozen=True)
class Webhook:
    """An address, what returns the keys that sign, and how long one try may take."""

    url: str
    keys: Callable[[], list[bytes]]  # read anew for each try, so that they can be changed
    seconds: float

    def tell(self, notice: Notice, stopped: Callable[[], bool]) -> str:
        """Post it. Raises Unavailable with what went wrong, and what `keys` does."""
        body, parts = text_of(notice), urlsplit(self.url)
        headers = {
            "Content-Type": "application/json",
            "User-Agent": "mergd",
            **signed(notice.id, int(time.time()), body, self.keys()),
            **_authorization(parts),
        }
        try:
            status = _post(parts, body, headers, self.seconds, stopped)
        except (OSError, HTTPException, ValueError) as error:
            raise Unavailable(f"{shown_url(self.url)}: {_said(error, self.seconds)}", "it is told again") from None
        if not 200 <= status < 300:
            raise Unavailable(f"{shown_url(self.url)} answered {status}", "it is told again")
        return f"{shown_url(self.url)} answered {status}"


def shown_url(url: str) -> str:
    """Return an address without all that may be a secret: userinfo, path and query."""
    parts = urlsplit(url)
    port = f":{parts.port}" if parts.port else ""
    host = parts.hostname or ""
    return f"{parts.scheme}://{f'[{host}]' if ':' in host else host}{port}"


def signed(name: str, timestamp: int, body: bytes, keys: list[bytes]) -> dict[str, str]:
    """Return the headers that Standard Webhooks wants, with a signature by each key."""
    content = f"{name}.{timestamp}.".encode() + body
    marks = [base64.b64encode(hmac.digest(key, content, "sha256")).decode() for key in keys]
    headers = {"webhook-id": name, "webhook-timestamp": str(timestamp)}
    return headers | ({"webhook-signature": " ".join(f"v1,{mark}" for mark in marks)} if marks else {})


def read_keys(path: Path) -> list[bytes]:
    """Return the keys in a file, one in each line. Raises Misconfigured or NotPermitted, without any of them."""
    try:
        lines = path.read_text().split()
        keys = [
            base64.b64decode(x[len(PREFIX) :], validate=True) if x.startswith(PREFIX) else x.encode() for x in lines
        ]
    except PermissionError:
        raise NotPermitted(f"this user may not read {path}", "let its owner be the daemon's user") from None
    except binascii.Error:
        raise Misconfigured(f"a key in {path} is no base64 after {PREFIX}", "copy it whole") from None
    except (OSError, UnicodeDecodeError):
        keys = []
    if not all(keys) or not keys:
        raise Misconfigured(f"there is no key in {path}", "put one there, in a line of its own")
    return keys


# ---------------------------------------------------------------------------------------------------------- the post


def _authorization(parts: SplitResult) -> dict[str, str]:
    if parts.username is None:
        return {}
    word = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    return {"Authorization": f"Basic {base64.b64encode(word.encode()).decode()}"}


def _post(parts: SplitResult, body: bytes, headers: dict[str, str], seconds: float, stopped: Callable[[], bool]) -> int:
    """Return the status that is answered."""
    assert parts.hostname
    make = HTTPSConnection if parts.scheme == "https" else HTTPConnection
    connection = make(parts.hostname, parts.port, timeout=seconds)
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    try:
        with _ended_in_time(connection, time.monotonic() + seconds, stopped):
            connection.request("POST", target, body, headers)
            return connection.getresponse().status
    finally:
        connection.close()


@contextmanager
def _ended_in_time(connection: HTTPConnection, until: float, stopped: Callable[[], bool]) -> Iterator[None]:
    """Hang up when the time is over: the client's own bound is for each byte, and there may be many."""
    done, over = threading.Event(), threading.Event()

    def watch() -> None:
        while not done.wait(TICK):
            late, sock = (
                stopped() or time.monotonic() > until,
                connection.sock,
            )  # which the client may let go of meanwhile
            if late and sock is not None:
                over.set()
                with suppress(OSError):
                    socket.socket.shutdown(sock, socket.SHUT_RDWR)

    watcher = threading.Thread(target=watch, name="mergd-webhook", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()
        if over.is_set():  # half an answer may look like a whole one
            raise TimeoutError


def _said(error: Exception, seconds: float) -> str:
    """Return what went wrong, in words that are ours or the system's: whoever answered chose none of them."""
    if isinstance(error, TimeoutError):
        return f"no answer within {seconds:g} s"
    reason = error.strerror if isinstance(error, OSError) else None
    return str(reason or getattr(error, "verify_message", "") or type(error).__name__)
