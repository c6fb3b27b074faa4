"""The control socket: one typed request a connection, answered by lines of JSON, progress first and then the result."""

import contextlib
import grp
import json
import logging
import os
import queue
import socket
import socketserver
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..state.errors import Busy, MergdError, NotPermitted, Usage
from .requests import AnyRequest, parse

log = logging.getLogger(__name__)

MAX_LINE = 1 << 20  # bytes of a request
PATIENCE = 1.0  # seconds that a connection may be silent before it has asked
Answer = dict[str, Any]


@dataclass(eq=False)
class Ask:
    """A request on its way: who asked, and where the answers go."""

    request: AnyRequest
    who: str
    answers: "queue.SimpleQueue[Answer]" = field(default_factory=queue.SimpleQueue)
    outcome: Answer | MergdError | None = None  # once it is there

    def progress(self, text: str) -> None:
        """Say how far it is."""
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
        self._server = _Server(self, folder)
        self.path.chmod(0o660)

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

    def answer(self, connection: socket.socket) -> None:
        """Take one request from a connection and send what is answered."""
        who = _peer(connection)
        try:
            ask = Ask(parse(_line(connection)), who)
        except MergdError as error:
            log.warning("refused a request of %s: %s", who, error)
            _send(connection, as_sent(error))
            return
        self._deliver(ask)
        connection.settimeout(PATIENCE)
        while True:
            answer = ask.answers.get()
            _send(connection, answer)
            if "progress" not in answer:
                return


class _Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = False  # closing waits for the connections, whose asks were answered by then

    def __init__(self, control: Control, folder: Path) -> None:
        self._control = control
        with _short(folder) as short:  # a socket's path holds 107 bytes; state folders lie deeper
            super().__init__(str(short / "control.sock"), socketserver.BaseRequestHandler)

    def finish_request(self, request: Any, client_address: Any) -> None:
        try:
            self._control.answer(request)
        except OSError as error:
            log.debug("a connection ended early: %s", error)


def ask(socket_path: Path, request: AnyRequest, show: Callable[[str], None]) -> Answer:
    """Send a request to a running daemon and return its result; `show` gets the progress.

    Raises what the daemon raised, Busy if it went away meanwhile, NotPermitted if this user may not ask.
    """
    with _short(socket_path.parent) as short, socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(str(short / socket_path.name))
        except PermissionError:
            raise NotPermitted(f"this user may not ask the daemon at {socket_path}", _group_hint(socket_path)) from None
        except OSError as error:
            raise Busy(f"the daemon does not listen at {socket_path}: {error.strerror}", "try again") from None
        connection.sendall(request.model_dump_json().encode() + b"\n")
        for line in connection.makefile("rb"):
            answer = json.loads(line)
            if "progress" in answer:
                show(answer["progress"])
            elif "error" in answer:
                raise _as_raised(answer)
            else:
                return dict(answer["result"])
    raise Busy("the daemon stopped before it had answered", "ask again once it runs")


def _as_raised(answer: Answer) -> MergdError:
    error = MergdError(answer["error"], answer["hint"])
    error.exit_code = answer["exit_code"]
    return error


def _line(connection: socket.socket) -> bytes:
    data = b""
    until = time.monotonic() + PATIENCE
    while not data.endswith(b"\n"):
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


def _peer(connection: socket.socket) -> str:
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid, uid, _ = struct.unpack("3i", credentials)
    return f"uid {uid} (process {pid})"


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
