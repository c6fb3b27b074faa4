"""The Hub's client, bounded: every call ends in time, no answer makes it sleep, and both its major versions behave alike.

The client itself waits for ever, and retries some calls and not others (measured with 1.33 and 2.4): here each caller says
how long it has, and gets what the Hub answered, said by who can mend it.
"""

import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cache
from typing import Any

from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    NotASafetensorsRepoError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    SafetensorsParsingError,
)
from huggingface_hub.utils import (
    build_hf_headers,
    get_session,
    hf_raise_for_status,
    parse_ratelimit_headers,
    set_client_factory,
)

from ....state.errors import MergdError, Misconfigured, NotPermitted, Unavailable

SILENCE = 8.0  # seconds without a byte, after which a bounded call ends
PATIENCE = 30.0  # the same for a call that nobody bounded


class Limited(Unavailable):
    """The Hub wants to be left alone for some time, or has trouble of its own."""

    def __init__(self, found: str, seconds: float | None, *, everybody: bool = False) -> None:
        super().__init__(found, "it is asked again later")
        self.seconds = seconds  # for which it wants that, if it says so
        self.everybody = everybody  # whether that is meant for whatever is asked, not for one repository


class Gone(Unavailable):
    """There is no such repository, commit or file any more, or it is no longer shown to this token."""


class _Bounds(threading.local):
    """What the calls of one thread have."""

    until = float("inf")  # monotonic seconds
    stopped: Callable[[], bool] | None = None
    silence = SILENCE

    def left(self) -> float:
        if self.stopped is not None and self.stopped():
            raise Unavailable("stopping", "it is asked again later")
        if (left := self.until - time.monotonic()) <= 0:
            raise Unavailable("the Hub took too long", "it is asked again later")
        return left


_bounds = _Bounds()
_installing = threading.Lock()  # a second one would take the first one's session for the client's own


@contextmanager
def within(seconds: float, stopped: Callable[[], bool] = lambda: False, silence: float = SILENCE) -> Iterator[None]:
    """Let the client's calls in this thread end after so many seconds, of `silence`, or soon after `stopped` says so.

    Raises Limited, at once, where the client would sleep and try again.
    """
    _install()
    _bounds.until, _bounds.stopped, _bounds.silence = time.monotonic() + seconds, stopped, silence
    try:
        yield
    finally:
        _bounds.until, _bounds.stopped, _bounds.silence = float("inf"), None, SILENCE


@contextmanager
def answering(name: str) -> Iterator[None]:
    """Say by who can mend it what the Hub, or the way to it, answers about a repository."""
    try:
        yield
    except MergdError:
        raise
    except Exception as error:  # noqa: BLE001 - its HTTP library, another one in each major version, raises through it
        raise _as_ours(name, error) from None


def _as_ours(name: str, error: Exception) -> MergdError:
    said = f"{name}: {first_line(error)}"
    match error:
        case GatedRepoError():
            hint = "ask for access on its page, then set HF_TOKEN to a token of that account"
            return NotPermitted(f"{name} is gated", hint)
        case LocalEntryNotFoundError():  # one of the next, by its class: nothing was asked, or nobody answered
            pass
        case RepositoryNotFoundError() | RevisionNotFoundError() | EntryNotFoundError():
            return Gone(said, "nothing, if that is as it should be; else check the token")
        case HfHubHTTPError() if error.response.status_code in (401, 403):
            return NotPermitted(said, "set HF_TOKEN or HF_TOKEN_PATH to a token that may read it")
        case HFValidationError() | NotASafetensorsRepoError() | SafetensorsParsingError():
            return Misconfigured(said, "name a model of safetensors files")
    return Unavailable(f"the Hub does not answer for {said}", "it is asked again later")


@contextmanager
def opened(url: str, start: int, end: int | None = None) -> Iterator[tuple[int, Iterator[bytes]]]:
    """Ask for the bytes of a file from `start`, and to `end` (exclusive) if given; gives where they begin, and pieces.

    They begin at 0 where the Hub does not know ranges: whoever asked takes what he needs, and no more is read.
    """
    _install()
    headers = build_hf_headers() | {"Range": f"bytes={start}-{'' if end is None else end - 1}"}
    headers["Accept-Encoding"] = "identity"  # a compressed range is none
    with get_session().stream("GET", url, headers=headers) as response:
        if response.status_code >= 400:
            response.read()
        hf_raise_for_status(response)
        yield (start if response.status_code == 206 else 0), response.iter_bytes()


def first_line(error: Exception) -> str:
    """Return what an error says, in one line, without what a signed address ends with."""
    lines = str(error).strip().splitlines()
    return re.sub(r"\?[^\s'\"]+", "?...", lines[0]) if lines else type(error).__name__


def _install() -> None:
    """Have each session of the client made with our bounds, whichever thread is the first to ask for that."""
    with _installing:
        _install_once()


@cache
def _install_once() -> None:
    """Do it: the client makes another session whenever a connection fails."""
    plain = get_session()
    make, hooks, timed = type(plain), plain.event_hooks, _timed(sys.modules[type(plain).__module__.partition(".")[0]])

    def answered(response: Any) -> None:
        if _bounds.stopped is not None:
            _check_status(response)
            response.stream = timed(response.stream)

    def factory() -> Any:
        events: dict[str, list[Callable[..., Any]]]
        events = {"request": [*hooks["request"], _begin], "response": [*hooks["response"], answered]}
        return make(event_hooks=events, follow_redirects=True, timeout=PATIENCE)

    set_client_factory(factory)


def _timed(library: Any) -> Any:
    """Return the class of an answer's body that ends with the time of whoever reads it; `library` is the client's own."""

    class Timed(library.SyncByteStream):  # type: ignore[misc]
        def __init__(self, stream: Any) -> None:
            self._stream = stream

        def __iter__(self) -> Iterator[bytes]:
            for piece in self._stream:
                _bounds.left()
                yield piece

        def close(self) -> None:
            self._stream.close()

    return Timed


def _begin(request: Any) -> None:
    seconds = min(_bounds.silence, _bounds.left()) if _bounds.stopped else PATIENCE
    request.extensions["timeout"] = dict.fromkeys(("connect", "read", "write", "pool"), seconds)


def _check_status(response: Any) -> None:
    status, seconds = response.status_code, _seconds_of(response.headers)
    if status == 429 or status >= 500:
        raise Limited(f"the Hub answered {status}", seconds, everybody=status == 429 or seconds is not None)


def _seconds_of(headers: Any) -> float | None:
    """Return for how long the Hub wants to be left alone, if its headers say so."""
    info, after = parse_ratelimit_headers(headers), headers.get("Retry-After", "")
    if after.isascii() and after.isdecimal():
        return float(after)
    with suppress(ValueError):  # it may be a date
        return max((parsedate_to_datetime(after).astimezone(UTC) - datetime.now(UTC)).total_seconds(), 0.0)
    return float(info.reset_in_seconds) if info is not None and info.remaining == 0 else None
