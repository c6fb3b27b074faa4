"""What can go wrong between a client and a server on the loopback; each fault is for the requests that match a pattern."""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

from .messages import Answer, Request


class Line(Protocol):
    """The connection that a request came on."""

    def wait(self, seconds: float) -> None:
        """Do nothing for so long; the connection ends at once if the server closes or the client leaves meanwhile."""

    def write(self, data: bytes) -> None:
        """Send some of the body."""

    def cut(self) -> None:
        """End the connection after what was sent."""

    def reset(self) -> None:
        """End the connection as a crash does: the other side gets "connection reset by peer"."""


class Fault:
    """Nothing wrong: the server's own answer, its body sent whole. Each fault has one of the two otherwise."""

    def answer(self, line: Line, request: Request, serve: Callable[[], Answer]) -> Answer:
        """Return the answer; `serve` does what was asked and returns the right one."""
        return serve()

    def write(self, line: Line, body: bytes) -> None:
        """Send the body; the headers have gone."""
        line.write(body)


@dataclass
class Status(Fault):
    """Another status in place of an answer: what was asked is not done."""

    status: int = 503
    headers: Mapping[str, str] = field(default_factory=dict)

    def answer(self, line: Line, request: Request, serve: Callable[[], Answer]) -> Answer:
        body = json.dumps({"error": f"status {self.status}"}).encode()
        return Answer(self.status, body, {"Content-Type": "application/json", **self.headers})


def too_many(seconds: int, kind: str = "api") -> Status:
    """The Hub's 429: nothing is left of the requests of this window, which ends in `seconds`."""
    limits = {"RateLimit": f'"{kind}";r=0;t={seconds}', "RateLimit-Policy": f'"fixed window";"{kind}";q=500;w=300'}
    return Status(429, {**limits, "Retry-After": str(seconds)})


@dataclass
class Silence(Fault):
    """No answer for so many seconds, then the right one."""

    seconds: float

    def answer(self, line: Line, request: Request, serve: Callable[[], Answer]) -> Answer:
        line.wait(self.seconds)
        return serve()


@dataclass
class Before(Fault):
    """Something happens on the server between the request and its answer."""

    happens: Callable[[], object]

    def answer(self, line: Line, request: Request, serve: Callable[[], Answer]) -> Answer:
        self.happens()
        return serve()


@dataclass
class Reset(Fault):
    """The connection is reset before an answer; with `done`, after what was asked has been done."""

    done: bool = False

    def answer(self, line: Line, request: Request, serve: Callable[[], Answer]) -> Answer:
        if self.done:
            serve()
        line.reset()
        raise ConnectionAbortedError


@dataclass
class Flipped(Fault):
    """One byte of the body is another one."""

    at: int = -1

    def answer(self, line: Line, request: Request, serve: Callable[[], Answer]) -> Answer:
        right = serve()
        body = bytearray(right.body)
        body[self.at] ^= 0xFF
        return replace(right, body=bytes(body))


@dataclass
class Length(Fault):
    """A Content-Length that is wrong by so much; the connection ends after the body."""

    by: int

    def answer(self, line: Line, request: Request, serve: Callable[[], Answer]) -> Answer:
        right = serve()
        return replace(right, headers={**right.headers, "Content-Length": str(len(right.body) + self.by)})

    def write(self, line: Line, body: bytes) -> None:
        line.write(body)
        line.cut()


@dataclass
class Truncated(Fault):
    """The connection ends after so many bytes of the body."""

    after: int

    def write(self, line: Line, body: bytes) -> None:
        line.write(body[: self.after])
        line.cut()


@dataclass
class Drip(Fault):
    """The body comes a few bytes at a time, with a pause after each."""

    seconds: float
    bytes_each: int = 1

    def write(self, line: Line, body: bytes) -> None:
        for start in range(0, len(body), self.bytes_each):
            line.write(body[start : start + self.bytes_each])
            line.wait(self.seconds)


class Storage(Protocol):
    """Where a body can be fetched from instead."""

    def keep(self, request: Request, body: bytes) -> str:
        """Take a body and return its URL."""


@dataclass
class Elsewhere(Fault):
    """A file is to be fetched from another server, as the Hub sends its clients to a CDN."""

    storage: Storage

    def answer(self, line: Line, request: Request, serve: Callable[[], Answer]) -> Answer:
        right = serve()
        if right.status != 200:
            return right
        return Answer(302, b"", {**right.headers, "Location": self.storage.keep(request, right.body)})


@dataclass
class Expected:
    """A fault that awaits its requests: those whose `METHOD /path` matches, the next `times` or (None) all."""

    pattern: str
    fault: Fault
    times: int | None = 1
    met: int = 0  # requests so far

    def meets(self, asked: str) -> bool:
        """Whether this request is one of them; it is counted."""
        if (self.times is not None and self.met >= self.times) or not re.search(self.pattern, asked):
            return False
        self.met += 1
        return True

    def end(self) -> None:
        """Await no more requests."""
        self.times = 0
