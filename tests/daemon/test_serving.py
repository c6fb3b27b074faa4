"""What the port of this machine serves, to whom, and what it makes of the Hub's calls."""

import http.client
import json
import logging
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from support.commands import eventually
from support.scraping import ask, free_port

from mergd.daemon import serving as serving_module
from mergd.daemon.serving import AT_ONCE, RARELY, Server, application
from mergd.daemon.settings_tables import HubSettings
from mergd.daemon.webhook import APART, LONGEST, Knocking, Webhook
from mergd.state.errors import Misconfigured, NotPermitted, Unavailable

SECRET = "canary-of-the-webhook"


class Told:
    """What the server asks for, as a test sets it."""

    def __init__(self) -> None:
        self.ailing, self.knocks = "", 0

    def knock(self) -> None:
        self.knocks += 1


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def hub(tmp_path: Path) -> HubSettings:
    path = tmp_path / "secret"
    path.write_text(f"{SECRET}\n")
    return HubSettings(namespace="acme", webhook_secret=str(path))


@contextmanager
def serving(told: Told, webhook: Webhook | None = None) -> Iterator[int]:
    """Serve at a port of this machine."""
    port = free_port()
    with closing(Server(application(lambda: b"figures 1\n", lambda: told.ailing, webhook), "127.0.0.1", port)):
        yield port


@pytest.fixture
def port(told: Told, hub: HubSettings) -> Iterator[int]:
    with serving(told, Webhook(hub, told.knock)) as port:
        yield port


# ---------------------------------------------------------------------------------------------------- what is served


def test_the_figures_are_served_as_prometheus_asks_for_them(port: int) -> None:
    answer = ask(port, "/metrics")
    assert (answer.status, answer.text) == (200, "figures 1\n")
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"


def test_health_is_a_status_and_a_line(port: int, told: Told) -> None:
    answer = ask(port, "/healthz")
    assert (answer.status, answer.text) == (200, "ok\n")
    told.ailing = "paused: disk full"
    answer = ask(port, "/healthz")
    assert (answer.status, answer.text) == (503, "paused: disk full\n")


@pytest.mark.parametrize("path", ["/", "/metrics/", "/docs", "/openapi.json", "/hub", "/../etc/passwd", "/healthz/x"])
def test_nothing_else_is_served(port: int, path: str) -> None:
    assert ask(port, path).status in (307, 404)
    assert "figures" not in ask(port, path).text


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
@pytest.mark.parametrize("path", ["/metrics", "/healthz"])
def test_what_is_served_can_only_be_read(port: int, path: str, method: str) -> None:
    assert ask(port, path, method).status == 405


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.1:9190", "localhost", "LOCALHOST:1", "[::1]:9190"])
def test_a_host_of_this_machine_is_answered(port: int, host: str) -> None:
    assert ask(port, "/metrics", Host=host).status == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:9190", "127.0.0.1.evil.example", "localhost.evil.example", "", "10.0.0.1", "*"],
)
@pytest.mark.parametrize("path", ["/metrics", "/healthz"])
def test_a_name_that_was_made_to_lead_here_is_not_answered(port: int, told: Told, path: str, host: str) -> None:
    told.ailing = "a secret trouble"
    answer = ask(port, path, Host=host)
    assert answer.status == 400
    assert "secret" not in answer.text
    assert "figures" not in answer.text


@pytest.mark.parametrize(
    "hosts", ["", "Host: localhost\r\nHost: evil.example\r\n", "Host: evil.example\r\nHost: localhost\r\n"]
)
def test_no_name_or_two_of_them_are_not_answered(port: int, hosts: str) -> None:
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(f"GET /metrics HTTP/1.0\r\n{hosts}\r\n".encode())
        assert b" 400 " in connection.recv(4096).splitlines()[0]


Connect = Callable[[int, int], list[socket.socket]]


@pytest.fixture
def silent() -> Iterator[Connect]:
    """What opens so many connections to a port, which are closed after the test."""
    with ExitStack() as opened:
        yield lambda port, count: [
            opened.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(count)
        ]


def has_ended(connection: socket.socket) -> bool:
    """Whether the server ends a connection, or has."""
    connection.settimeout(30)
    try:
        while connection.recv(4096):  # what was answered before
            pass
        return True
    except ConnectionResetError:
        return True


def test_one_connection_too_many_is_closed_at_once_and_the_server_still_ends(
    told: Told, silent: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving_module, "ASKS_WITHIN", 600.0)
    monkeypatch.setattr(serving_module, "LIVES", 600.0)
    with serving(told) as port:
        there = silent(port, AT_ONCE)
        assert all(has_ended(one) for one in silent(port, 50))
        assert ask_of(there[0]).startswith(b"HTTP/1.1 200")
        for connection in there[:8]:
            connection.close()
        eventually(lambda: bool(status_of(port)))


def ask_of(connection: socket.socket) -> bytes:
    connection.settimeout(30)
    connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
    return connection.recv(4096)


def status_of(port: int) -> int:
    """Return the status of an answer; 0 where the connection was one too many."""
    try:
        return ask(port, "/healthz").status
    except (ConnectionError, http.client.HTTPException):
        return 0


def test_whoever_asks_for_nothing_whole_is_closed_in_time(
    told: Told, silent: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving_module, "ASKS_WITHIN", 0.2)
    with serving(told) as port:
        nothing, half = silent(port, 2)
        half.sendall(b"GET /healthz HTTP/1.1\r\n")
        assert has_ended(nothing)
        assert has_ended(half)
        assert ask(port, "/healthz").status == 200


def test_a_connection_lasts_no_longer_than_it_may(told: Told, silent: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving_module, "LIVES", 0.3)
    with serving(told) as port:
        (one,) = silent(port, 1)
        assert ask_of(one)
        one.sendall(b"GET /healthz HTTP/1.1\r\n")  # nor by beginning another request
        assert has_ended(one)


def test_malformed_requests_do_not_fill_the_log(port: int, silent: Connect, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(20):
        (one,) = silent(port, 1)
        one.sendall(b"no request\r\n\r\n")
        assert b" 400 " in one.recv(4096)
    assert not caplog.records


def test_errors_of_the_servers_packages_are_logged_at_times(port: int, caplog: pytest.LogCaptureFixture) -> None:
    RARELY["asyncio"]._at = float("-inf")
    for _ in range(20):
        logging.getLogger("asyncio").error("socket.accept() out of system resource")
    assert len(caplog.records) == 1


def test_a_port_that_is_taken_is_told_of(told: Told) -> None:
    with serving(told) as port, pytest.raises(Unavailable, match=f"port {port}"):
        Server(application(bytes, str), "127.0.0.1", port)


def test_it_is_reached_from_this_machine_alone(told: Told) -> None:
    with serving(told) as port:
        listening = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()]
        ((address, _),) = [
            (words[1].split(":")[0], words) for words in listening[1:]
            if words[3] == "0A" and int(words[1].split(":")[1], 16) == port
        ]  # fmt: skip
        assert socket.inet_ntoa(bytes.fromhex(address)[::-1]) == "127.0.0.1"


# ------------------------------------------------------------------------------------------------- the Hub's calls


def call(name: str = "acme/ft-1", scope: str = "repo.content", kind: str = "model", **more: Any) -> bytes:
    """Return a call as the Hub documents it."""
    repo = {"type": kind, "name": name, "id": "621f", "private": False, "headSha": "0" * 40}
    event = {"action": "update", "scope": scope}
    return json.dumps({"event": event, "repo": repo, "webhook": {"id": "6390", "version": 3}} | more).encode()


def post(port: int, body: bytes, secret: str | None = SECRET, **headers: str) -> int:
    given = {} if secret is None else {"X_Webhook_Secret": secret}
    return ask(port, "/hub/webhook", "POST", body, **given, **headers).status


@pytest.mark.parametrize("body", [call(), call("ACME/x"), call(scope="repo"), call(scope="repo.config"),
                                  call(updatedRefs=[{"ref": "refs/heads/main", "oldSha": None, "newSha": "1" * 40}])])  # fmt: skip
def test_a_call_about_the_namespace_wakes_a_poll(port: int, told: Told, body: bytes) -> None:
    assert post(port, body) == 202
    assert told.knocks == 1


@pytest.mark.parametrize(
    "body",
    [call("other/ft-1"), call("acme-2/x"), call("x/acme"), call(""), call(kind="dataset"), call(scope="discussion"),
     b"{}", b"[]", b"null", b"7", b'"repo"', b'{"event": 1, "repo": 2}', b'{"event": {}, "repo": {"type": "model"}}'],
)  # fmt: skip
def test_any_other_call_is_ignored(port: int, told: Told, body: bytes) -> None:
    assert post(port, body) == 204
    assert told.knocks == 0


@pytest.mark.parametrize("body", [b"", b"{", b"\xff\xfe", b"[" * 60_000])
def test_what_is_no_json_is_no_call(port: int, told: Told, body: bytes) -> None:
    assert post(port, body) == 400
    assert told.knocks == 0


@pytest.mark.parametrize("secret", [None, "", "wrong", SECRET[:-1], SECRET + "x", SECRET.upper(), "é"])
def test_without_the_secret_nothing_is_read(port: int, told: Told, secret: str | None) -> None:
    assert post(port, call(), secret) == 401
    assert post(port, b"x" * 10, secret) == 401
    assert told.knocks == 0


@pytest.mark.parametrize(("length", "status"), [(LONGEST, 400), (LONGEST + 1, 413), (3_000_000, 413)])
def test_a_long_call_is_not_read_to_its_end(port: int, told: Told, length: int, status: int) -> None:
    try:
        assert post(port, b"[" * length) == status
    except (BrokenPipeError, ConnectionResetError):  # it was cut off
        assert status == 413
    assert told.knocks == 0


def test_a_call_may_come_through_a_proxy_that_keeps_its_host(port: int, told: Told) -> None:
    assert post(port, call(), Host="mergd.example.org") == 202
    assert told.knocks == 1


def test_only_a_post_is_a_call(port: int) -> None:
    assert ask(port, "/hub/webhook").status == 405


def test_without_a_secret_in_the_settings_there_is_no_such_place(told: Told) -> None:
    with serving(told) as port:
        assert post(port, call()) == 404


def test_another_secret_counts_at_once(port: int, told: Told, hub: HubSettings) -> None:
    Path(hub.webhook_secret).write_text("another")
    assert (post(port, call()), post(port, call(), "another")) == (401, 202)
    Path(hub.webhook_secret).write_text("")
    assert post(port, call(), "") == 401


@pytest.mark.parametrize("content", [None, b"", b"  \n", b"two words", b"a\nb", b"\xff", b"x" * 5000])
def test_where_there_is_no_secret_the_start_says_so(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "secret"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(Misconfigured, match=r"hub\.webhook_secret"):
        Webhook(HubSettings(namespace="acme", webhook_secret=str(path)), lambda: None)


def test_a_relative_name_is_a_credential_of_systemds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = HubSettings(namespace="acme", webhook_secret="hook")
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    with pytest.raises(Misconfigured, match="systemd gave none"):
        Webhook(settings, lambda: None)
    (tmp_path / "hook").write_text(SECRET)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert Webhook(settings, lambda: None).allows(SECRET)


def test_a_secret_that_may_not_be_read_is_told_of(hub: HubSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*arguments: Any) -> None:
        raise PermissionError

    monkeypatch.setattr(Path, "open", forbidden)
    with pytest.raises(NotPermitted):
        Webhook(hub, lambda: None)


# ------------------------------------------------------------------------------------------------------- the polls


class Clock:
    """Keeps what is to be done later until a test does it."""

    def __init__(self) -> None:
        self.planned: list[tuple[Any, float]] = []

    def later(self, act: Any, seconds: float) -> None:
        self.planned.append((act, seconds))


def test_a_flood_of_calls_is_one_poll_at_once_and_one_at_the_end_of_the_wait() -> None:
    clock, polls = Clock(), []
    knocking = Knocking(lambda: polls.append(1), clock.later)
    for _ in range(1000):
        knocking.knock()
    ((act, seconds),) = clock.planned
    assert seconds == 0
    act()
    for _ in range(1000):
        knocking.knock()
    (_, (act, seconds)) = clock.planned
    assert 0 < seconds <= APART
    act()
    assert len(polls) == 2


def test_polls_of_calls_and_of_the_clock_keep_the_promise_of_fifty_calls() -> None:
    assert 300 / APART + 300 / 60 + 5 <= 50  # of 5 minutes: those, these, and what chance adds


def test_a_call_during_a_poll_is_not_lost() -> None:
    clock, polls = Clock(), []

    def poll() -> None:
        polls.append(1)
        knocking.knock()

    knocking = Knocking(poll, clock.later)
    knocking.knock()
    clock.planned[0][0]()
    assert len(clock.planned) == 2


def test_two_polls_never_run_at_once() -> None:
    clock, running, most, goes_on = Clock(), [0], [0], threading.Event()

    def poll() -> None:
        running[0] += 1
        most[0] = max(most[0], running[0])
        goes_on.wait(0.2)
        running[0] -= 1

    knocking = Knocking(poll, clock.later)
    knocking.knock()
    threads = [threading.Thread(target=clock.planned[0][0]) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]


def test_a_poll_that_fails_keeps_no_later_one_from_being_woken() -> None:
    clock = Clock()

    def poll() -> None:
        raise ZeroDivisionError

    knocking = Knocking(poll, clock.later)
    knocking.knock()
    with pytest.raises(ZeroDivisionError):
        clock.planned[0][0]()
    knocking.knock()
    assert len(clock.planned) == 2
