"""What systemd hears, on a real datagram socket."""

import resource
import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from mergd.daemon.notify import Watchdog, notify, reloading, starts
from mergd.daemon.progress import Progress


@pytest.fixture
def receiver() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.settimeout(5)
        yield receiver


def test_lines_arrive_as_one_datagram(receiver: socket.socket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    receiver.bind(str(tmp_path / "notify"))
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    notify("READY=1", "STATUS=waiting")
    assert receiver.recv(4096) == b"READY=1\nSTATUS=waiting"


def test_an_abstract_address_is_reached(
    receiver: socket.socket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    receiver.bind(f"\0{tmp_path}")
    monkeypatch.setenv("NOTIFY_SOCKET", f"@{tmp_path}")
    notify("READY=1")
    assert receiver.recv(4096) == b"READY=1"


def test_a_reload_bears_the_time_that_systemd_asks_for(
    receiver: socket.socket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    receiver.bind(str(tmp_path / "notify"))
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    reloading()
    first, second = receiver.recv(4096).decode().split("\n")
    assert first == "RELOADING=1"
    assert int(second.removeprefix("MONOTONIC_USEC=")) > 0


@pytest.mark.parametrize("address", ["", "/no/such/socket", "@nobody-listens-here"])
def test_where_nobody_listens_nothing_happens(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    notify("READY=1")


def test_where_no_descriptor_is_free_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", "@nobody-listens-here")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            socket.socket()
        notify("READY=1")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_without_systemd_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    notify("READY=1")
    reloading()


# ---------------------------------------------------------------------------------------------------- the watchdog


@pytest.fixture
def pings(receiver: socket.socket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], int]]:
    """Have systemd ask for a sign of life every 10 s; gives what counts those that it got since the last count."""
    receiver.bind(str(tmp_path / "notify"))
    receiver.setblocking(False)
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    monkeypatch.setenv("WATCHDOG_USEC", "10000000")

    def count() -> int:
        number = 0
        with suppress(BlockingIOError):
            while True:
                assert receiver.recv(4096) == b"WATCHDOG=1"
                number += 1
        return number

    yield count


class Clock:
    """Seconds that a test lets pass."""

    now: float = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_loop_that_waits_for_nothing_is_alive_as_long_as_it_comes_round(pings: Callable[[], int]) -> None:
    clock = Clock()
    watchdog = Watchdog(clock)
    for clock.now in range(20):
        watchdog.beat(None, None)
        assert pings() == 1


def test_work_that_takes_no_step_is_not_alive(pings: Callable[[], int]) -> None:
    clock = Clock()
    watchdog = Watchdog(clock)
    for clock.now in range(100):
        watchdog.beat(7, None)
        assert pings() == (clock.now == 0)
    watchdog.beat(8, None)
    assert pings() == 1


def test_a_program_is_waited_for_until_its_deadline_and_no_longer(pings: Callable[[], int]) -> None:
    clock = Clock()
    watchdog = Watchdog(clock)
    for clock.now in range(100):
        watchdog.beat(7, 50.0)
        assert pings() == (clock.now < 50)


def test_pings_are_no_more_than_are_of_use(pings: Callable[[], int]) -> None:
    clock = Clock()
    watchdog = Watchdog(clock)
    for step in range(100):
        clock.now = step / 4
        watchdog.beat(step, None)
        assert pings() == (step % 4 == 0)


def test_the_watchdog_of_another_process_is_not_ours(pings: Callable[[], int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATCHDOG_PID", "1")
    Watchdog().beat(None, None)
    assert pings() == 0


def test_a_name_with_a_newline_adds_no_line(
    receiver: socket.socket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    receiver.bind(str(tmp_path / "notify"))
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    notify("STATUS=folding a\nMAINPID=1")
    assert receiver.recv(4096) == b"STATUS=folding a?MAINPID=1"


def test_a_start_that_goes_on_asks_for_more_time(
    receiver: socket.socket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    receiver.bind(str(tmp_path / "notify"))
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    starts("reading the base model")
    assert receiver.recv(4096) == b"STATUS=reading the base model\nEXTEND_TIMEOUT_USEC=300000000"


# ------------------------------------------------------------------------------------------------ what counts as steps


def test_each_kind_of_step_is_one() -> None:
    progress = Progress()
    seen = [progress.steps]

    def grew() -> bool:
        seen.append(progress.steps)
        return seen[-1] > seen[-2]

    progress.begin("folding", 2, 100)
    assert grew()
    with progress.busy("decompose"):
        pass
    assert grew()
    progress.advance(50)
    assert grew()
    progress.end()
    assert grew()


def test_progress_in_a_few_words() -> None:
    progress = Progress()
    assert progress.of("llama-math") == "starting llama-math"
    progress.begin("folding", 738, 100)
    progress.next_weight()
    assert progress.of("llama-math") == "folding llama-math 1/738 weights"
