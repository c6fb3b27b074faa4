"""What goes over the wire, and every fault, once with the real client where it can tell."""

import http.client
import socket
import time
from pathlib import Path

import pytest
from fakehub import (
    Before,
    Cdn,
    Drip,
    Elsewhere,
    FakeHub,
    Fault,
    Flipped,
    Length,
    Reset,
    Silence,
    Status,
    Truncated,
    too_many,
)
from support.hub_client import HubClient
from support.hub_files import FILES, WEIGHTS

OWNER = "HfApi(token='owner')"


def ask(hub: FakeHub, path: str, method: str = "GET", **headers: str) -> tuple[int, "http.client.HTTPMessage", bytes]:
    """Return status, headers and body, over a connection of its own."""
    connection = http.client.HTTPConnection(hub.url.removeprefix("http://"), timeout=10)
    try:
        connection.request(method, path, headers=headers)
        response = connection.getresponse()
        return response.status, response.headers, response.read()
    finally:
        connection.close()


PATH = "/org/a/resolve/main/model.safetensors"


@pytest.mark.parametrize(
    ("asked", "status", "got", "told"),
    [
        ("bytes=0-9", 206, WEIGHTS[:10], "bytes 0-9/10240"),
        ("bytes=10000-", 206, WEIGHTS[10000:], "bytes 10000-10239/10240"),
        ("bytes=10000-99999", 206, WEIGHTS[10000:], "bytes 10000-10239/10240"),
        ("bytes=-5", 206, WEIGHTS[-5:], "bytes 10235-10239/10240"),
        ("bytes=10240-", 416, b"", "bytes */10240"),
        ("lines=1-2", 200, WEIGHTS, None),
    ],
)
def test_a_part_of_a_file(hub: FakeHub, asked: str, status: int, got: bytes, told: str | None) -> None:
    hub.push("org/a", FILES)
    answered, headers, body = ask(hub, PATH, Range=asked)
    assert (answered, body, headers["Content-Range"]) == (status, got, told)


def test_a_head_request_gets_the_headers_alone(hub: FakeHub) -> None:
    commit = hub.push("org/a", FILES)
    status, headers, body = ask(hub, PATH, "HEAD")
    assert (status, headers["Content-Length"], headers["X-Repo-Commit"], body) == (200, "10240", commit, b"")
    assert headers["ETag"] == headers["X-Linked-ETag"]
    assert not any("xet" in name.lower() for name in headers)


def test_a_connection_is_kept_and_ends_with_the_hub() -> None:
    with FakeHub(keep_alive=True) as kept:
        kept.push("org/a", FILES)
        connection = http.client.HTTPConnection(kept.url.removeprefix("http://"), timeout=10)
        sockets = set()
        for _ in range(3):
            connection.request("GET", PATH)
            assert connection.getresponse().read() == WEIGHTS
            sockets.add(connection.sock)
        assert len(sockets) == 1
        assert None not in sockets
    connection.close()


@pytest.mark.parametrize("header", [b"Content-Length: 100", b"Transfer-Encoding: chunked"])
def test_a_client_that_is_killed_in_its_request_changes_nothing(header: bytes) -> None:
    with FakeHub() as served:
        with socket.create_connection(("127.0.0.1", served.port)) as connection:
            connection.sendall(b"PUT /lfs/%s HTTP/1.1\r\n%s\r\n\r\n64\r\nhalf" % (b"0" * 64, header))
            connection.shutdown(socket.SHUT_WR)
            assert connection.recv(100) == b""
        assert served.asked == []


def test_a_hub_comes_back_where_it_was() -> None:
    with FakeHub() as gone:
        gone.push("org/a", FILES)
    with pytest.raises(ConnectionRefusedError):
        ask(gone, PATH)
    with FakeHub(port=gone.port) as back:
        back.repositories = gone.repositories
        assert ask(gone, PATH)[0] == 200


def test_a_bug_of_the_hub_is_no_outage() -> None:
    with pytest.raises(TypeError, match="interpreted as an integer"), FakeHub() as buggy:
        buggy.push("org/a", FILES)
        buggy.repositories["org/a"].modified = "no time"  # type: ignore[assignment]
        assert ask(buggy, "/api/models/org/a")[0] == 500


# --------------------------------------------------------------------------------------------------------------- faults


FETCH = "api.hf_hub_download('org/a', 'model.safetensors', force_download=True)"


@pytest.mark.parametrize(
    "fault",
    [too_many(7), Silence(60), Truncated(1000), Length(+10), Drip(30, bytes_each=1000)],
    ids=lambda fault: type(fault).__name__,
)
def test_the_client_gets_over_it(hub: FakeHub, client: HubClient, fault: Fault) -> None:
    hub.push("org/a", FILES)
    expected = hub.fault("GET .*safetensors", fault)
    assert Path(client(FETCH)).read_bytes() == WEIGHTS
    assert expected.met == 1
    assert hub.asked.count(f"GET {PATH}") == 2


def test_a_download_that_broke_off_goes_on_where_it_was(hub: FakeHub, client: HubClient) -> None:
    chunk = 10 * 2**20  # what the client reads at once, and keeps
    hub.push("org/a", {"model.safetensors": bytes(chunk + 5)})
    hub.fault("GET .*safetensors", Truncated(chunk + 3))
    assert Path(client(FETCH)).stat().st_size == chunk + 5
    assert [request.range for request in hub.requests if request.method == "GET"] == [None, f"bytes={chunk}-"]


def test_an_outage_a_reset_and_a_flipped_byte_reach_the_client(hub: FakeHub, client: HubClient) -> None:
    hub.push("org/flipped", FILES)
    outage = hub.fault("api/models/org/flipped$", Status(503), times=None)
    assert client.failure("api.model_info('org/flipped')") == ("HfHubHTTPError", 503)
    outage.end()
    hub.fault("api/models/org/flipped$", too_many(7))
    assert client.failure("api.model_info('org/flipped')") == ("HfHubHTTPError", 429)
    hub.fault("api/models/org/flipped$", Reset())
    assert client.failure("api.model_info('org/flipped')") == ("ReadError", None)
    assert client("api.model_info('org/flipped').id") == "org/flipped"
    hub.fault("GET .*safetensors", Flipped())
    assert (
        Path(client(FETCH.replace("org/a", "org/flipped"))).read_bytes() == WEIGHTS[:-1] + b"\x00"
    )  # it looks at sizes alone


def test_the_first_fault_that_fits_is_met_as_often_as_it_says(hub: FakeHub) -> None:
    hub.push("org/a", FILES)
    hub.fault("HEAD", Status(500), times=None)
    hub.fault("resolve", Status(502, {"Retry-After": "9"}), times=2)
    hub.fault("resolve", Drip(0.001, bytes_each=5000))
    hub.fault("resolve", Length(-1))
    assert [ask(hub, PATH)[0] for _ in range(2)] == [502, 502]
    assert ask(hub, PATH)[2] == WEIGHTS
    assert ask(hub, PATH)[2] == WEIGHTS[:-1]
    assert ask(hub, PATH)[2] == WEIGHTS
    assert ask(hub, PATH, "HEAD")[0] == 500


def test_a_repository_goes_between_a_request_and_its_answer(hub: FakeHub, client: HubClient) -> None:
    hub.push("org/a", FILES)
    hub.fault("GET .*safetensors", Before(lambda: hub.delete("org/a")))
    assert client.failure(FETCH) == ("RepositoryNotFoundError", 404)


def test_another_host_hands_out_the_file_and_is_told_no_token(hub: FakeHub, client: HubClient) -> None:
    hub.push("org/elsewhere", FILES, private=True)
    with Cdn() as cdn:
        hub.fault("resolve.*safetensors", Elsewhere(cdn), times=None)
        cdn.fault("GET", Truncated(1000))
        path = client(f"{OWNER}.hf_hub_download('org/elsewhere', 'model.safetensors')")
        assert Path(path).read_bytes() == WEIGHTS
        assert [request.token for request in cdn.requests] == [None, None]
        assert ask(hub, PATH.replace("org/a", "org/elsewhere"), Authorization="Bearer owner")[0] == 302
    assert {request.token for request in hub.requests} == {"owner"}


def test_a_silent_hub_closes_at_once(tmp_path: Path) -> None:
    with FakeHub(keep_alive=True) as silent:
        silent.fault("", Silence(600))
        connection = http.client.HTTPConnection(silent.url.removeprefix("http://"), timeout=10)
        connection.request("GET", "/api/models")
        while not silent.asked:
            time.sleep(0.01)
    with pytest.raises(http.client.RemoteDisconnected):
        connection.getresponse()
    connection.close()
