"""The control socket: one typed request a connection, answered by lines of JSON, progress first and then the result.

Everybody may connect, so that the daemon sees whom it turns away, and writes it down. It looks at the same as the kernel
would, at the same moment: the peer's user and groups when it connected, and the socket file's group.
"""

import contextlib
import grp
import json
import logging
import os
import queue
import select
import socket
import socketserver
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..state.errors import Busy, MergdError, NotPermitted, Usage
from .door import Audit, Guests, peer_of
from .requests import AnyRequest, parse

log = logging.getLogger(__name__)

MAX_LINE = 1 << 20  # bytes of a request
PATIENCE = 0.9  # seconds that a connection may take to ask, or to take an answer
PROGRESS = 16  # lines that wait to be sent; it is told again how far it is
Answer = dict[str, Any]


@dataclass(eq=False)
class Ask:
    """A request on its way: who asked, and where the answers go."""

    request: AnyRequest
    who: str
    answers: "queue.SimpleQueue[Answer]" = field(default_factory=queue.SimpleQueue)
    outcome: Answer | MergdError | None = None  # once it is there

    def progress(self, text: str) -> None:
        """Say how far it is, unless nobody reads it."""
        if self.answers.qsize() < PROGRESS:
            self.answers.put({"progress": text})

    def result(self, value: Answer) -> None:
        """Give the result, which ends the answers."""
        self.outcome = value
        self.answers.put({"result": value})

    def error(self, error: MergdError) -> None:
        """Give an error, which ends the answers."""
        self.outcome = error
        self.answers.put(as_sent(error))


def as_sent(error: MergdError) -> Answer:
    """Return an error as it goes over the socket."""
    return {"error": str(error), "hint": error.hint, "exit_code": error.exit_code}


def _send(connection: socket.socket, answer: Answer) -> None:
    connection.sendall(json.dumps(answer).encode() + b"\n")


class Control:
    """Listens on the socket of a running daemon; each request goes to the one thread that may act on it."""

    def __init__(self, folder: Path, deliver: Callable[[Ask], None]) -> None:
        self.path = folder / "control.sock"
        self.path.unlink(missing_ok=True)
        self._deliver = deliver
        self._guests, self._audit = Guests(), Audit()
        self._server = _Server(self, folder)
        self.path.chmod(0o666)

    def serve(self) -> None:
        """Answer until `close`; runs on a thread of its own."""
        self._server.serve_forever(poll_interval=0.2)

    def deafen(self) -> None:
        """Take no more connections."""
        self._server.shutdown()

    def close(self) -> None:
        """Wait for the last connections, whose requests were answered, and remove the socket."""
        self._server.server_close()
        self.path.unlink(missing_ok=True)

    def admit(self, connection: socket.socket) -> bool:
        """Say whether a connection may ask; else it is told why not, unread, and it is written down."""
        peer = peer_of(connection)
        error: MergdError | None = None
        if not peer.may_ask(self.path.stat().st_gid):
            error = not_permitted(self.path)
        elif not self._guests.enter(connection, peer):
            error = Busy("too many connections are open", "try again")
        if error is None:
            return True
        self._audit.refused(peer, error)
        connection.setblocking(False)
        _send(connection, as_sent(error))
        return False

    def forget(self, connection: socket.socket) -> None:
        """A connection is closed."""
        self._guests.leave(connection)

    def answer(self, connection: socket.socket) -> None:
        """Take one request from a connection and send what is answered."""
        peer = peer_of(connection)
        try:
            ask = Ask(parse(_line(connection)), str(peer))
        except MergdError as error:
            self._audit.refused(peer, error)
            connection.settimeout(PATIENCE)
            _send(connection, as_sent(error))
            return
        self._deliver(ask)
        connection.settimeout(PATIENCE)
        for answer in _answers(ask, connection):
            _send(connection, answer)


def _answers(ask: Ask, connection: socket.socket) -> Iterator[Answer]:
    """Yield the answers as they come, the result last; none any more once nobody listens."""
    while True:
        try:
            answer = ask.answers.get(timeout=PATIENCE)
        except queue.Empty:
            if _hung_up(connection):
                return
            continue
        yield answer
        if "progress" not in answer:
            return


def _hung_up(connection: socket.socket) -> bool:
    poll = select.poll()
    poll.register(connection, 0)  # what is told unasked: a hang-up, an error
    return bool(poll.poll(0))


class _Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = False  # closing waits for the connections, whose asks were answered by then
    request_queue_size = 64

    def __init__(self, control: Control, folder: Path) -> None:
        self._control = control
        with _short(folder) as short:  # a socket's path holds 107 bytes; state folders lie deeper
            super().__init__(str(short / "control.sock"), socketserver.BaseRequestHandler)

    def verify_request(self, request: Any, client_address: Any) -> bool:
        try:
            return self._control.admit(request)
        except OSError as error:
            log.debug("a connection ended early: %s", error)
            return False

    def finish_request(self, request: Any, client_address: Any) -> None:
        try:
            self._control.answer(request)
        except OSError as error:
            log.debug("a connection ended early: %s", error)

    def shutdown_request(self, request: Any) -> None:
        self._control.forget(request)
        super().shutdown_request(request)


def ask(socket_path: Path, request: AnyRequest, show: Callable[[str], None]) -> Answer:
    """Send a request to a running daemon and return its result; `show` gets the progress.

    Raises what the daemon raised, Busy if it went away meanwhile, NotPermitted if this user may not ask.
    """
    with socket.socket(socket.AF_UNIX) as connection:
        _connect(connection, socket_path)
        with contextlib.suppress(ConnectionError):  # it closes first on those whom it turns away: the answer is there
            connection.sendall(request.model_dump_json().encode() + b"\n")
        with contextlib.suppress(ConnectionError):
            for line in connection.makefile("rb"):
                answer = json.loads(line)
                if "progress" in answer:
                    show(answer["progress"])
                elif "error" in answer:
                    raise _as_raised(answer)
                else:
                    return dict(answer["result"])
    raise Busy("the daemon stopped before it had answered", "ask again once it runs")


def _connect(connection: socket.socket, socket_path: Path) -> None:
    try:
        with _short(socket_path.parent) as short:
            connection.connect(str(short / socket_path.name))
    except PermissionError:
        raise not_permitted(socket_path) from None
    except OSError as error:
        raise Busy(f"the daemon does not listen at {socket_path}: {error.strerror}", "try again") from None


def not_permitted(socket_path: Path) -> NotPermitted:
    """Return the error of those who may not ask, whoever finds that out."""
    return NotPermitted(f"this user may not ask the daemon at {socket_path}", _group_hint(socket_path))


def _as_raised(answer: Answer) -> MergdError:
    error = MergdError(answer["error"], answer["hint"])
    error.exit_code = answer["exit_code"]
    return error


def _line(connection: socket.socket) -> bytes:
    data = b""
    until = time.monotonic() + PATIENCE
    while b"\n" not in data:
        try:
            connection.settimeout(max(0.001, until - time.monotonic()))
            more = connection.recv(65536)
        except TimeoutError:
            raise Usage(f"nothing was asked within {PATIENCE:g} s") from None
        data += more
        if len(data) > MAX_LINE:
            raise Usage(f"a request of more than {MAX_LINE} bytes")
        if not more:
            raise Usage("the connection ended before the request did")
    return data


def _group_hint(path: Path) -> str:
    try:
        return f"be in the group {grp.getgrgid(path.stat().st_gid).gr_name}"
    except (OSError, KeyError):
        return "ask its owner"


@contextlib.contextmanager
def _short(folder: Path) -> Iterator[Path]:
    """Give a folder a short path, by its descriptor."""
    fd = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield Path(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)
