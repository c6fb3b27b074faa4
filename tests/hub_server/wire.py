"""A server on the loopback, HTTP/1.1 with kept connections: it logs each request, lets faults at it, and leaves nothing open."""

import socket
import struct
import sys
import threading
import time
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self, cast

from .faults import Expected, Fault
from .messages import Answer, Problem, Request

NO_LINGER = struct.pack("ii", 1, 0)  # close() then resets the connection
GLANCE = 0.05  # seconds after which a fault that waits looks whether there is still somebody to wait for


class Loopback:
    """Serves while entered, at `url`; `asked` has each request as text, `requests` with what came along, `faults` what is to go wrong.

    Connections are kept for a next request only with `keep_alive`: both ends then have them open after a test.
    """

    def __init__(self, port: int = 0, keep_alive: bool = False, host: str = "127.0.0.1") -> None:
        self.keep_alive = keep_alive
        self.asked: list[str] = []
        self.requests: list[Request] = []  # without their bodies
        self.faults: list[Expected] = []
        self.lock = threading.RLock()  # over what is served: requests come on many threads
        self.closing = threading.Event()
        self.bugs: list[BaseException] = []
        self._server = _Server((host, port), _Connection)
        self._server.loopback = self
        self.port = self._server.server_port
        self.url = f"http://{host}:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), name=type(self).__name__)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.closing.set()
        self._server.shutdown()
        self._thread.join()
        self._server.hang_up()
        self._server.server_close()  # waits for the threads
        if self.bugs and error[0] is None:
            raise self.bugs[0]

    def fault(self, pattern: str, fault: Fault, times: int | None = 1) -> Expected:
        """Have the next `times` requests (None: all) whose `METHOD /path` matches meet a fault; the first that fits wins."""
        expected = Expected(pattern, fault, times)
        with self.lock:
            self.faults.append(expected)
        return expected

    def answer(self, request: Request) -> Answer:
        """Do what is asked; called under the lock."""
        raise NotImplementedError

    def serve(self, request: Request) -> Answer:
        """Return the right answer, a bug's being a 500 that is raised again when the server closes."""
        with self.lock:
            try:
                return self.answer(request)
            except Problem as problem:
                return problem.answer
            except Exception as bug:  # noqa: BLE001 -- raised again by __exit__
                self.bugs.append(bug)
                return Answer(500, repr(bug).encode())

    def meet(self, request: Request) -> Fault:
        """Log a request and return the fault that it meets."""
        asked = str(request)
        with self.lock:
            self.asked.append(asked)
            self.requests.append(replace(request, body=b""))
            return next((expected.fault for expected in self.faults if expected.meets(asked)), Fault())


class _Server(ThreadingHTTPServer):
    """Knows its open connections: a client keeps them for its next request, for which no thread shall wait at the end."""

    daemon_threads = False
    request_queue_size = 64
    loopback: Loopback

    def __init__(self, *arguments: Any) -> None:
        self._open: set[socket.socket] = set()
        super().__init__(*arguments)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._open.discard(request)
        super().shutdown_request(request)

    def hang_up(self) -> None:
        """End every connection."""
        for connection in list(self._open):
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:  # gone already
                pass

    def handle_error(self, request: Any, client_address: Any) -> None:
        error = sys.exc_info()[1]
        if error and not isinstance(error, ConnectionError):  # a client may leave whenever it likes
            self.loopback.bugs.append(error)


class _Connection(BaseHTTPRequestHandler):
    """A connection and its requests; the faults know it as a line."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # the headers and the body are sent apart
    wbufsize = 0

    @property
    def loopback(self) -> Loopback:
        return cast(_Server, self.server).loopback

    def respond(self) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = Request(self.command, self.path, headers, self._body())
        fault = self.loopback.meet(request)
        answer = fault.answer(self, request, lambda: self.loopback.serve(request)).part(headers.get("range"))
        self.send_response(answer.status)
        for name, value in ({"Content-Length": str(len(answer.body))} | dict(answer.headers)).items():
            self.send_header(name, value)
        if not self.loopback.keep_alive:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            fault.write(self, answer.body)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = respond

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            return b"".join(iter(self._chunk, b""))
        return self._read(int(self.headers.get("Content-Length") or 0))

    def _chunk(self) -> bytes:
        data = self._read(int(self.rfile.readline() or b"1", 16))
        self.rfile.readline()
        return data

    def _read(self, size: int) -> bytes:
        data = self.rfile.read(size)
        if len(data) < size:
            raise ConnectionAbortedError("the client left before its request was whole")
        return data

    def wait(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            if self.loopback.closing.wait(min(left, GLANCE)) or self._client_left():
                raise ConnectionAbortedError

    def _client_left(self) -> bool:
        try:
            return not self.connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:  # it says nothing and listens
            return False

    def write(self, data: bytes) -> None:
        self.wfile.write(data)

    def cut(self) -> None:
        self.close_connection = True

    def reset(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NO_LINGER)
        socket.close(self.connection.detach())

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


class Cdn(Loopback):
    """A second server, at another address of the loopback and so another host, that hands out bodies under signed URLs."""

    def __init__(self) -> None:
        super().__init__(host="127.0.0.2")
        self._bodies: dict[str, bytes] = {}

    def keep(self, request: Request, body: bytes) -> str:
        """Take the body of an answer and return its URL."""
        self._bodies[request.path] = body
        return f"{self.url}{request.path}?signature=1"

    def answer(self, request: Request) -> Answer:
        if request.path not in self._bodies or request.first("signature") != "1":
            raise Problem(403, "", "no signature")
        return Answer(200, self._bodies[request.path], {"Accept-Ranges": "bytes"})
