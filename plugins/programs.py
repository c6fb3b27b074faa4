"""Programs of the user: one request in, one bounded answer out, and nothing of them is left when their time is over.

A program is a child of the daemon, or a unit of systemd that the daemon may ask and not choose; known to Python alone, so
that the same code runs in that unit.
"""

import json
import os
import selectors
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from ..state.wording import shown

ANSWER = 64 << 10  # bytes of an answer, at most
FRAME = 8 * ANSWER  # bytes of what a unit answers: JSON may take six for one
KEPT = 1 << 20  # bytes of a log; as many again lie in what it was before
TICK = 0.05  # seconds between looks at whether it is to end
LAST = 4096  # bytes in which the last line is looked for
BUSY = 10.0  # seconds for which a unit may still be ending what it was asked before: it turns others away meanwhile
LEFT = 1.0  # seconds for which a killed program is waited for: what belongs to another user cannot be killed

Stopped = Callable[[], bool]
Sink = Callable[[bytes], None]


@dataclass(frozen=True)
class Ran:
    """How a program ended."""

    exit: int | None  # negative: the signal that ended it; None: it gave no answer, and the last line says why
    output: bytes
    last_line: str  # of what it wrote to its standard error, or else of its answer; to be shown


class Program(Protocol):
    """What can be asked."""

    def run(self, request: bytes, seconds: float, stopped: Stopped) -> Ran:
        """Return what it answers; without an exit where it took longer than that, or was stopped."""
        ...


# ------------------------------------------------------------------------------------------------------- as a child


@dataclass(frozen=True)
class Child:
    """A program that is run as a child, with an empty environment but for what is given here."""

    command: tuple[str, ...]
    log: Path  # what it writes, for its owner alone
    environment: Mapping[str, str] = field(default_factory=dict)

    def run(self, request: bytes, seconds: float, stopped: Stopped) -> Ran:
        """Run it, and kill all of its group at the end."""
        given = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
        keep = Log(self.log).write
        ran = run_child(
            self.command, {"PATH": os.defpath, **given, **self.environment}, request, seconds, stopped, keep
        )
        keep(ran.output)
        return ran


def run_child(
    command: Sequence[str], environment: Mapping[str, str], request: bytes, seconds: float, stopped: Stopped, sink: Sink
) -> Ran:
    """Run a command in a session of its own; `sink` takes what it writes to its standard error."""
    try:
        process = subprocess.Popen(  # noqa: S603 - the administrator's own words, and no shell
            list(command),
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd="/",
            env=dict(environment),
            start_new_session=True,
        )
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        return Ran(None, b"", f"{shown(command[0])} cannot be run: {why}")
    talk = _Talk(process, request, sink)
    try:
        trouble = talk.follow(time.monotonic() + seconds, stopped)
    finally:
        _kill(process)
        talk.end()
    if not trouble and process.returncode is None:
        trouble = "it could not be ended"
    if trouble or (trouble := talk.too_much()):
        return Ran(None, b"", trouble)
    return Ran(process.returncode, bytes(talk.answer), last_line(talk.tail) or last_line(talk.answer))


def _ended(process: subprocess.Popen[bytes]) -> bool:
    """Whether it ended; it stays a zombie until its group is killed, so that the group's number is nobody else's."""
    return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _kill(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    with suppress(subprocess.TimeoutExpired):
        process.wait(LEFT)


class _Talk:
    """What goes to a child and comes from it, none of which is ever waited for longer than a tick."""

    def __init__(self, process: subprocess.Popen[bytes], request: bytes, sink: Sink) -> None:
        assert process.stdin and process.stdout and process.stderr
        self.answer, self.tail = bytearray(), bytearray()
        self._process, self._rest, self._sink = process, memoryview(request), sink
        self._pipes = selectors.DefaultSelector()
        for pipe, act in ((process.stdin, self._give), (process.stdout, self._take), (process.stderr, self._note)):
            os.set_blocking(pipe.fileno(), False)
            event = selectors.EVENT_WRITE if pipe is process.stdin else selectors.EVENT_READ
            self._pipes.register(pipe, event, act)

    def follow(self, until: float, stopped: Stopped) -> str:
        """Return once it ended; or else why it is not to go on."""
        while not _ended(self._process):
            if stopped():
                return "it was stopped"
            if time.monotonic() > until:
                return "it took too long"
            if self.too_much():
                break
            self._move(TICK)
        return self.too_much()

    def too_much(self) -> str:
        """Return what is wrong with the length of its answer."""
        return f"it answered with more than {ANSWER >> 10} KiB" if len(self.answer) > ANSWER else ""

    def end(self) -> None:
        """Take what is still in the pipes, whoever else may hold them open, and close them."""
        for _ in range(16):
            if not self._move(0):
                break
        for key in list(self._pipes.get_map().values()):
            self._close(key)
        self._pipes.close()

    def _move(self, seconds: float) -> bool:
        ready = self._pipes.select(seconds)
        for key, _ in ready:
            try:
                more = key.data(key.fd)
            except BlockingIOError:
                continue
            except OSError:  # it reads no more
                more = False
            if not more:
                self._close(key)
        return bool(ready)

    def _close(self, key: selectors.SelectorKey) -> None:
        self._pipes.unregister(key.fileobj)
        key.fileobj.close()  # type: ignore[union-attr]

    def _give(self, pipe: int) -> bool:
        self._rest = self._rest[os.write(pipe, self._rest[: 1 << 16]) :]
        return len(self._rest) > 0

    def _take(self, pipe: int) -> bool:
        piece = os.read(pipe, 1 << 16)
        self.answer += piece[: ANSWER + 1 - len(self.answer)]
        return bool(piece)

    def _note(self, pipe: int) -> bool:
        piece = os.read(pipe, 1 << 16)
        self._sink(piece)
        self.tail = (self.tail + piece)[-LAST:]
        return bool(piece)


def last_line(text: bytes | bytearray) -> str:
    """Return the last line that says something, as a message may show it."""
    lines = [line for line in bytes(text[-LAST:]).decode(errors="replace").splitlines() if line.strip()]
    return shown(lines[-1].strip()) if lines else ""


@dataclass(frozen=True)
class Log:
    """A file of what programs wrote, for its owner alone; the older half goes when it is full."""

    path: Path

    def write(self, text: bytes) -> None:
        """Add a text; a disk that takes none is no reason to stop anything."""
        if not text:
            return
        with suppress(OSError):
            self.path.parent.mkdir(mode=0o700, exist_ok=True)
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            log = os.open(self.path, flags, 0o600)
            try:
                os.fchmod(log, 0o600)
                os.write(log, text)
                full = os.fstat(log).st_size > KEPT
            finally:
                os.close(log)
            if full:
                os.replace(self.path, self.path.with_name(f"{self.path.name}.1"))


# --------------------------------------------------------------------------------------------------------- as a unit


@dataclass(frozen=True)
class Unit:
    """A program that systemd runs for whoever asks at a socket: `run_program` is what its unit starts."""

    socket: Path

    def run(self, request: bytes, seconds: float, stopped: Stopped) -> Ran:
        """Ask it. Hanging up is what ends the program there."""
        began = time.monotonic()
        while True:
            try:
                return read_frame(self._ask(request, began + seconds, stopped))
            except _GaveUp as error:
                return Ran(None, b"", str(error))
            except OSError as error:
                turned_away = isinstance(error, ConnectionResetError | BrokenPipeError)
                if not turned_away or stopped() or time.monotonic() > began + min(seconds, BUSY):
                    return Ran(None, b"", f"nobody answers at {shown(self.socket)}: {error.strerror or error}")
            time.sleep(TICK)

    def _ask(self, request: bytes, until: float, stopped: Stopped) -> bytes:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as unit:
            unit.settimeout(TICK)
            unit.connect(str(self.socket))
            return _exchange(unit, request, until, stopped)


class _GaveUp(Exception):
    pass


def _exchange(unit: socket.socket, request: bytes, until: float, stopped: Stopped) -> bytes:
    """Send the request, and return all that is answered."""
    rest, frame = memoryview(request), bytearray()
    while True:
        if stopped():
            raise _GaveUp("it was stopped")
        if time.monotonic() > until:
            raise _GaveUp("it took too long")
        try:
            if rest:
                rest = rest[unit.send(rest) :]
                if not rest:
                    unit.shutdown(socket.SHUT_WR)
                continue
            piece = unit.recv(1 << 16)
        except TimeoutError:
            continue
        frame += piece
        if not piece or len(frame) > FRAME:
            return bytes(frame)


def frame_of(ran: Ran) -> bytes:
    """Return what a unit answers: one JSON object."""
    text = ran.output.decode(errors="replace")
    return json.dumps({"exit": ran.exit, "output": text, "last_line": ran.last_line}).encode()


def read_frame(frame: bytes) -> Ran:
    """Return what a unit answered, if that is what it should be."""
    if not frame:
        return Ran(None, b"", "the unit closed the connection without an answer")
    try:
        said = json.loads(frame) if len(frame) <= FRAME else None
        match said:
            case {"exit": int() | None as code, "output": str() as output, "last_line": str() as line}:
                answer = output.encode()
                if not isinstance(code, bool) and len(answer) <= 3 * ANSWER:  # what is no UTF-8 takes three for one
                    return Ran(code, answer, shown(line))
    except (ValueError, RecursionError):
        pass
    return Ran(None, b"", "the unit answered with something else than run_program does")
