"""The control socket, a real one: what is asked, what comes back, and what it bears from those who ask badly."""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mergd.daemon.control import PATIENCE, Ask, Control, ask
from mergd.daemon.requests import AnyRequest, Fold, Gc, Pause, Resume, Rollback, Tag, Untag
from mergd.state.errors import Busy, MergdError, NotPermitted, Refused
from mergd.state.records import Reason

SOON = PATIENCE + 1.0  # seconds


class Heard:
    """Takes the requests in place of a loop, and answers as a test says."""

    def __init__(self) -> None:
        self.requests: list[Ask] = []
        self.answer: Callable[[Ask], None] = lambda ask: ask.result({"done": True})

    def __call__(self, ask: Ask) -> None:
        self.requests.append(ask)
        self.answer(ask)


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder deeper than the path of a socket may be long."""
    folder = tmp_path / ("deep-" * 12) / ("deeper-" * 12)
    folder.mkdir(parents=True)
    assert len(str(folder)) > 150
    return folder


@pytest.fixture
def control(folder: Path, heard: Heard) -> Iterator[Control]:
    control = Control(folder, heard)
    thread = threading.Thread(target=control.serve)
    thread.start()
    yield control
    control.deafen()
    control.close()
    thread.join()


def silent(text: str) -> None:
    """Take progress that nobody looks at."""


def connected(control: Control, monkeypatch: pytest.MonkeyPatch) -> socket.socket:
    """Return a raw connection."""
    monkeypatch.chdir(control.path.parent)
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(10)
    connection.connect(control.path.name)
    return connection


def answers(connection: socket.socket) -> list[dict[str, Any]]:
    """Return all that comes until the other end closes."""
    with connection, connection.makefile("rb") as lines:
        return [json.loads(line) for line in lines]


@pytest.mark.parametrize(
    "request_", [Rollback(version="v3", pause=True), Pause(why="a\nb"), Resume(), Fold(checkpoints=("a", "b"), again=True),
                 Tag(name="a/b", version="v3", force=True), Untag(name="a/b"), Gc()],
    ids=lambda request: request.verb,
)  # fmt: skip
def test_a_request_arrives_as_it_was_asked_and_its_result_comes_back(
    control: Control, heard: Heard, request_: AnyRequest
) -> None:
    heard.answer = lambda ask: ask.result({"head": 3, "names": ["ü", "b"]})
    assert ask(control.path, request_, silent) == {"head": 3, "names": ["ü", "b"]}
    assert [heard.request for heard in heard.requests] == [request_]
    assert heard.requests[0].who.startswith("uid ")


def test_progress_comes_before_the_result(control: Control, heard: Heard) -> None:
    def answer(ask: Ask) -> None:
        for k in range(3):
            ask.progress(f"weight {k}")
        ask.result({})

    heard.answer = answer
    seen: list[str] = []
    assert ask(control.path, Resume(), seen.append) == {}
    assert seen == ["weight 0", "weight 1", "weight 2"]


@pytest.mark.parametrize(
    "error", [Busy("later", "wait"), Refused(Reason("shape", "a", "b", "c")), NotPermitted("no", "ask")]
)
def test_an_error_comes_back_with_its_hint_and_its_exit_code(control: Control, heard: Heard, error: MergdError) -> None:
    heard.answer = lambda ask: ask.error(error)
    with pytest.raises(MergdError, match=str(error)) as raised:
        ask(control.path, Resume(), silent)
    assert (raised.value.hint, raised.value.exit_code) == (error.hint, error.exit_code)


def test_several_may_ask_at_once(control: Control, heard: Heard) -> None:
    waiting: list[Ask] = []
    heard.answer = waiting.append
    results: list[dict[str, Any]] = []
    threads = [threading.Thread(target=lambda: results.append(ask(control.path, Resume(), silent))) for _ in range(5)]
    for thread in threads:
        thread.start()
    while len(waiting) < 5:
        time.sleep(0.01)
    for k, asked in enumerate(reversed(waiting)):
        asked.result({"k": k})
    for thread in threads:
        thread.join()
    assert sorted(result["k"] for result in results) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    "line",
    [
        b'{"verb": "shell", "command": "id"}',
        b'{"verb": "rollback", "version": 7}',
        b'{"verb": "rollback", "more": 1}',
        b'{"verb": "pause", "why": "' + b"x" * 5000 + b'"}',
        b'{"verb": "fold"}',
        b"{}",
        b"[]",
        b"null",
        b"not json",
        b"\xff\xfe\x00",
        b"",
        b"[" * 100_000,
    ],
    ids=lambda line: repr(line[:24]),
)
def test_what_is_no_request_is_refused_at_once(
    control: Control, heard: Heard, monkeypatch: pytest.MonkeyPatch, line: bytes
) -> None:
    began = time.monotonic()
    connection = connected(control, monkeypatch)
    connection.sendall(line + b"\n")
    (answer,) = answers(connection)
    assert answer["exit_code"] == 2
    assert time.monotonic() - began < SOON
    assert heard.requests == []


def test_a_message_of_ten_megabytes_is_refused_unread(
    control: Control, heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    began = time.monotonic()
    connection = connected(control, monkeypatch)
    try:
        for _ in range(160):
            connection.sendall(b"x" * 65536)
    except (BrokenPipeError, ConnectionResetError):
        pass  # it hung up in the middle, as it should
    try:
        assert [answer["exit_code"] for answer in answers(connection)] == [2]
    except ConnectionResetError:
        pass
    assert time.monotonic() - began < SOON
    assert heard.requests == []
    assert ask(control.path, Resume(), silent) == {"done": True}


@pytest.mark.parametrize("said", [b"", b'{"verb": "res'])
def test_a_connection_that_falls_silent_is_ended(
    control: Control, heard: Heard, monkeypatch: pytest.MonkeyPatch, said: bytes
) -> None:
    began = time.monotonic()
    connection = connected(control, monkeypatch)
    connection.sendall(said)
    (answer,) = answers(connection)
    assert "nothing was asked" in answer["error"]
    assert time.monotonic() - began < SOON
    assert heard.requests == []


def test_a_connection_that_drips_is_ended_too(control: Control, heard: Heard, monkeypatch: pytest.MonkeyPatch) -> None:
    began = time.monotonic()
    connection = connected(control, monkeypatch)
    with connection:
        try:
            while time.monotonic() - began < 3 * PATIENCE:
                connection.sendall(b" ")
                time.sleep(PATIENCE / 4)
        except (BrokenPipeError, ConnectionResetError):
            pass
    assert time.monotonic() - began < SOON
    assert heard.requests == []


def test_one_who_hangs_up_early_hinders_nobody(control: Control, heard: Heard, monkeypatch: pytest.MonkeyPatch) -> None:
    waiting: list[Ask] = []
    heard.answer = waiting.append
    connection = connected(control, monkeypatch)
    connection.sendall(b'{"verb": "resume"}\n')
    while not waiting:
        time.sleep(0.01)
    connection.close()
    waiting[0].progress("still at it")
    waiting[0].result({})
    heard.answer = lambda ask: ask.result({"done": True})
    assert ask(control.path, Resume(), silent) == {"done": True}


def test_the_socket_is_for_owner_and_group(control: Control) -> None:
    assert control.path.stat().st_mode & 0o777 == 0o660


def test_a_socket_that_a_crash_left_is_replaced_and_a_stopped_one_is_gone(
    folder: Path, heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    with socket.socket(socket.AF_UNIX) as left:
        left.bind("control.sock")
    with pytest.raises(Busy, match="does not listen"):
        ask(folder / "control.sock", Resume(), silent)
    control = Control(folder, heard)
    thread = threading.Thread(target=control.serve)
    thread.start()
    assert ask(control.path, Resume(), silent) == {"done": True}
    control.deafen()
    control.close()
    thread.join()
    assert not control.path.exists()
