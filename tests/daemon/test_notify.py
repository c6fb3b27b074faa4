"""What systemd hears, on a real datagram socket."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from mergd.daemon.notify import notify, reloading


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


def test_without_systemd_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    notify("READY=1")
    reloading()
