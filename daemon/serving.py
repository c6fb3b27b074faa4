"""The HTTP server: the figures, whether all is well, and the Hub's calls, at a port that only this machine reaches."""

import asyncio
import logging
import re
import socket
import threading
import time
from collections.abc import Awaitable, Callable

import uvicorn
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from uvicorn.protocols.http.h11_impl import H11Protocol

from ..state.errors import Unavailable
from .webhook import LONGEST, Webhook

# A page of another site reaches a name of its own that leads here, not these. Older Starlettes' own check knows no [::1].
HOST = re.compile(r"(127\.0\.0\.1|localhost|\[::1\])(:[0-9]{1,5})?", re.IGNORECASE)
Answering = Callable[[Request], Awaitable[Response]]
TEXT = "text/plain; version=0.0.4; charset=utf-8"
AT_ONCE = 32  # connections
ACCEPTED = 32  # of them in one turn: those over the limit take a descriptor until the next
ASKS_WITHIN = 5.0  # seconds until a connection's first request is whole, but for its body
PATIENCE = 10.0  # seconds that the body of a call may take
LIVES = 20.0  # seconds that a connection may last, whatever it does
LIMITS = {"backlog": ACCEPTED, "timeout_keep_alive": 5, "timeout_graceful_shutdown": 1}
LINES_EVERY = 60.0  # seconds between lines that the server's packages may log
NOISY = ("asyncio", "uvicorn.error")
PLAIN = {"loop": "asyncio", "ws": "none", "lifespan": "off", "log_config": None, "access_log": False}


def application(text: Callable[[], bytes], ailing: Callable[[], str], webhook: Webhook | None = None) -> Starlette:
    """Return what is served; the Hub's calls only where there is a webhook."""

    async def metrics(request: Request) -> Response:
        return Response(text(), headers={"Content-Type": TEXT})

    async def healthz(request: Request) -> Response:
        wrong = ailing()
        return PlainTextResponse(f"{wrong or 'ok'}\n", 503 if wrong else 200)

    routes = [Route("/metrics", local(metrics), methods=["GET"]), Route("/healthz", local(healthz), methods=["GET"])]
    if webhook is not None:  # the Hub's calls come through a proxy, with its host; their secret is what counts
        routes.append(Route("/hub/webhook", called(webhook), methods=["POST"]))
    return Starlette(routes=routes)


def local(answer: Answering) -> Answering:
    """Return what answers nobody but those who ask for this machine by its own address."""

    async def checked(request: Request) -> Response:
        hosts = request.headers.getlist("Host")
        if len(hosts) != 1 or not HOST.fullmatch(hosts[0]):
            return PlainTextResponse("ask for 127.0.0.1, localhost or [::1]\n", 400)
        return await answer(request)

    return checked


def called(webhook: Webhook) -> Answering:
    """Return what answers the Hub's calls: nothing of one is read before its secret is known to be right."""

    async def answer(request: Request) -> Response:
        if not webhook.allows(request.headers.get("X-Webhook-Secret", "")):
            return Response(status_code=401)
        try:
            async with asyncio.timeout(PATIENCE):
                body = await bounded(request)
        except (TimeoutError, ClientDisconnect):
            return Response(status_code=408)
        return Response(status_code=413 if body is None else webhook.take(body))

    return answer


async def bounded(request: Request) -> bytes | None:
    """Return the body; None if it is too long, of which no more is read."""
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > LONGEST:
            return None
    return body


class Connection(H11Protocol):
    """One connection: whoever opens many, or says nothing, must not take the descriptors that folding needs."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Close it at once where it is one too many, and otherwise in time."""
        super().connection_made(transport)
        self._ends = [
            self.loop.call_later(ASKS_WITHIN, self._unless_asked),
            self.loop.call_later(LIVES, transport.abort),
        ]
        if len(self.connections) > AT_ONCE:
            transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget when it was to end."""
        for end in self._ends:
            end.cancel()
        super().connection_lost(exc)

    def _unless_asked(self) -> None:
        if self.cycle is None:
            self.transport.abort()


class Rarely(logging.Filter):
    """Lets an error through at times, and nothing less: what others send must not fill the log."""

    def __init__(self) -> None:
        super().__init__()
        self._at = float("-inf")

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a record is logged."""
        now = time.monotonic()
        if record.levelno < logging.ERROR or now - self._at < LINES_EVERY:
            return False
        self._at = now
        return True


RARELY = {name: Rarely() for name in NOISY}


class Server:
    """Serves an application on a thread of its own, from now until it is closed."""

    def __init__(self, served: Starlette, host: str, port: int) -> None:
        """Raises Unavailable where the port cannot be had."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            self._socket = socket.create_server((host, port), family=family)
        except OSError as error:
            raise Unavailable(
                f"metrics.listen: port {port} of {host} cannot be had: {error.strerror}", "choose another, or free it"
            ) from None
        for name, rarely in RARELY.items():
            logging.getLogger(name).addFilter(rarely)
        config = uvicorn.Config(served, http=Connection, server_header=False, **LIMITS, **PLAIN)  # type: ignore[arg-type]
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([self._socket],), name="mergd-http")
        self._thread.start()

    def close(self) -> None:
        """Serve nothing any more."""
        self._server.should_exit = True
        self._thread.join()
        self._socket.close()
