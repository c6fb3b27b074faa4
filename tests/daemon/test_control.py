"""The control socket, a real one: what is asked, what comes back, and what it bears from those who ask badly."""

import grp
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.commands import eventually, start_forking
from support.users import asks_as, knocks

from mergd.daemon import door
from mergd.daemon.control import MAX_LINE, PATIENCE, PROGRESS, Ask, Control, ask
from mergd.daemon.requests import AnyRequest, Fold, Gc, Pause, Resume, Rollback, Tag, Untag
from mergd.state.errors import Busy, MergdError, NotPermitted, Refused
from mergd.state.records import Reason

SOON = PATIENCE + 1.0  # seconds
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")


@pytest.fixture(scope="module", autouse=True)
def forking() -> None:
    start_forking()


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


def refusals(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return what the log says of refused requests."""
    found = [record for record in caplog.records if record.name == "mergd.daemon.door"]
    assert {record.levelno for record in found} <= {logging.WARNING}
    return [record.getMessage() for record in found]


def me() -> str:
    """Return how the log calls this process."""
    return f"uid {os.geteuid()} (process {os.getpid()})"


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
        b'{"verb": "' + b"x" * 900_000 + b'"}',
        b'{"verb": "resume"}\n{"verb": "pause"}',
    ],
    ids=lambda line: repr(line[:24]),
)
def test_what_is_no_request_is_refused_at_once_and_written_down(
    control: Control, heard: Heard, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, line: bytes
) -> None:
    began = time.monotonic()
    connection = connected(control, monkeypatch)
    connection.sendall(line + b"\n")
    (answer,) = answers(connection)
    assert answer["exit_code"] == 2
    assert time.monotonic() - began < SOON
    assert heard.requests == []
    (told,) = refusals(caplog)
    assert told == f"refused a request of {me()}: {answer['error']}"
    assert len(told) < 5000


def test_a_message_of_ten_megabytes_is_refused_unread(
    control: Control, heard: Heard, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    began = time.monotonic()
    connection = connected(control, monkeypatch)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
    taken = 0
    try:
        for _ in range(160):
            connection.sendall(b"x" * 65536)
            taken += 65536
    except (BrokenPipeError, ConnectionResetError):
        pass  # it hung up in the middle, as it should
    assert MAX_LINE <= taken < 2 * MAX_LINE
    try:
        assert [answer["exit_code"] for answer in answers(connection)] == [2]
    except ConnectionResetError:
        pass
    assert time.monotonic() - began < SOON
    assert heard.requests == []
    assert refusals(caplog) == [f"refused a request of {me()}: a request of more than {MAX_LINE} bytes"]
    assert ask(control.path, Resume(), silent) == {"done": True}


@pytest.mark.parametrize("said", [b"", b'{"verb": "res'])
def test_a_connection_that_falls_silent_is_ended(
    control: Control, heard: Heard, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, said: bytes
) -> None:
    began = time.monotonic()
    connection = connected(control, monkeypatch)
    connection.sendall(said)
    (answer,) = answers(connection)
    assert "nothing was asked" in answer["error"]
    assert time.monotonic() - began < SOON
    assert heard.requests == []
    assert refusals(caplog) == [f"refused a request of {me()}: {answer['error']}"]


def test_a_connection_that_drips_is_ended_too(
    control: Control, heard: Heard, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
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
    assert len(refusals(caplog)) == 1


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


# --------------------------------------------------------------------------------------------------------- who may ask

SOMEBODY, OTHERS, OURS = 54321, 54322, 54323


def test_everybody_may_knock(control: Control) -> None:
    assert control.path.stat().st_mode & 0o777 == 0o666


@as_root
def test_a_user_outside_the_group_is_refused_and_written_down(
    control: Control, heard: Heard, caplog: pytest.LogCaptureFixture
) -> None:
    os.chown(control.path, -1, OURS)
    error, hint, code = asks_as(control.path.parent, SOMEBODY, OTHERS, OTHERS, SOMEBODY)
    assert error == f"this user may not ask the daemon at {control.path}"
    assert (hint, code) == ("ask its owner", NotPermitted.exit_code)  # the group has no name
    assert heard.requests == []
    (told,) = refusals(caplog)
    assert told.startswith(f"refused a request of uid {SOMEBODY} (process ")
    assert told.endswith(error)


@as_root
def test_the_kernel_and_the_daemon_refuse_with_the_same_words(control: Control) -> None:
    group = grp.getgrgid(control.path.stat().st_gid).gr_name
    error, hint, code = asks_as(control.path.parent, SOMEBODY, OTHERS)
    assert hint == f"be in the group {group}"
    control.path.chmod(0o660)
    by_the_kernel = asks_as(control.path.parent, SOMEBODY, OTHERS)
    assert by_the_kernel == (error.replace(str(control.path), "control.sock"), hint, code)


@as_root
@pytest.mark.parametrize(
    ("gid", "groups"),
    [(OURS, ()), (OTHERS, (OURS,)), (OTHERS, (*range(60_000, 60_700), OURS))],
    ids=["its first group", "one of its groups", "one of 701"],
)
def test_a_user_in_the_group_may_ask(control: Control, heard: Heard, gid: int, groups: tuple[int, ...]) -> None:
    os.chown(control.path, -1, OURS)
    assert asks_as(control.path.parent, SOMEBODY, gid, *groups) == {"done": True}
    assert heard.requests[0].who.startswith(f"uid {SOMEBODY} (process ")


@as_root
def test_root_may_ask_whatever_its_groups(control: Control) -> None:
    os.chown(control.path, -1, OURS)
    assert asks_as(control.path.parent, 0, OTHERS) == {"done": True}


@as_root
def test_the_folders_own_mode_still_counts(control: Control, heard: Heard, caplog: pytest.LogCaptureFixture) -> None:
    control.path.parent.chmod(0o700)
    _, _, code = asks_as(control.path.parent, SOMEBODY, OTHERS)
    assert code == NotPermitted.exit_code
    assert refusals(caplog) == []  # the daemon never saw it


def test_who_fills_the_log_is_counted(
    control: Control, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(door, "LINES", 3)
    for _ in range(5):
        with knocks(control.path.parent) as connection:
            connection.sendall(b"[]\n")
            answers(connection)
    assert len(refusals(caplog)) == 3
    monkeypatch.setattr(door, "WINDOW", 0.0)
    with knocks(control.path.parent) as connection:
        connection.sendall(b"[]\n")
        answers(connection)
    assert refusals(caplog)[3] == f"refused 2 more requests of uid {os.geteuid()}"
    assert len(refusals(caplog)) == 5


# ------------------------------------------------------------------------------------------------------- how many


def test_too_many_connections_of_one_user_are_told_so_at_once(
    control: Control, heard: Heard, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(door, "MOST_OF_ONE", 3)
    waiting: list[Ask] = []
    heard.answer = waiting.append
    inside = [knocks(control.path.parent) for _ in range(3)]
    for connection in inside:
        connection.sendall(b'{"verb": "resume"}\n')
    eventually(lambda: len(waiting) == 3)
    for _ in range(20):
        with pytest.raises(MergdError, match="too many connections") as raised:
            ask(control.path, Resume(), silent)
        assert raised.value.exit_code == Busy.exit_code
    assert len(refusals(caplog)) == 20
    for asked in waiting:
        asked.result({"k": 1})
    assert [answers(connection) for connection in inside] == [[{"result": {"k": 1}}]] * 3
    heard.answer = lambda ask: ask.result({"done": True})
    assert eventually(lambda: asked_in_vain(control)) == {"done": True}


def asked_in_vain(control: Control) -> dict[str, Any] | None:
    """Return the result, or None while it is busy."""
    try:
        return ask(control.path, Resume(), silent)
    except MergdError:
        return None


@as_root
def test_a_user_who_opens_many_keeps_no_other_one_out(
    control: Control, heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door, "MOST_OF_ONE", 3)
    heard.answer = lambda ask: None
    inside = [knocks(control.path.parent) for _ in range(3)]
    for connection in inside:
        connection.sendall(b'{"verb": "resume"}\n')
    eventually(lambda: len(heard.requests) == 3)
    heard.answer = lambda ask: ask.result({"done": True})
    assert asks_as(control.path.parent, SOMEBODY, control.path.stat().st_gid) == {"done": True}
    monkeypatch.setattr(door, "MOST", 3)
    error, _, code = asks_as(control.path.parent, SOMEBODY, control.path.stat().st_gid)
    assert ("too many" in error, code) == (True, Busy.exit_code)
    for connection in inside:
        connection.close()
    assert eventually(lambda: asked_in_vain(control)) == {"done": True}  # what is abandoned makes room


def test_silent_connections_hinder_nobody(control: Control, heard: Heard) -> None:
    silent_ones = [knocks(control.path.parent) for _ in range(door.MOST_OF_ONE - 1)]
    assert ask(control.path, Resume(), silent) == {"done": True}
    for connection in silent_ones:
        assert "nothing was asked" in answers(connection)[0]["error"]


def test_progress_that_nobody_reads_does_not_pile_up(control: Control, heard: Heard) -> None:
    def answer(ask: Ask) -> None:
        for k in range(100_000):
            ask.progress("x" * 100 + str(k))
        assert ask.answers.qsize() <= PROGRESS
        ask.result({"done": True})

    heard.answer = answer
    seen: list[str] = []
    assert ask(control.path, Resume(), seen.append) == {"done": True}
    assert seen


def test_who_does_not_read_a_long_answer_is_let_go(control: Control, heard: Heard) -> None:
    heard.answer = lambda ask: ask.result({"out": "x" * 10_000_000})
    with knocks(control.path.parent) as connection:
        connection.sendall(b'{"verb": "resume"}\n')
        eventually(lambda: not control._guests._inside and heard.requests)
    heard.answer = lambda ask: ask.result({"done": True})
    assert ask(control.path, Resume(), silent) == {"done": True}


# ----------------------------------------------------------------------------------------------------------- its file


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
