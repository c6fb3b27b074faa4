"""The webhook: what is posted and how it is signed, what counts as told, and that nothing that answers makes it wait."""

import base64
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.notices import NOTICE, TOLD
from support.recorder import Post, Recorder, recording

from mergd.plugins.hooks.webhook import Webhook, read_keys, shown_url, signed
from mergd.state.errors import MergdError, Misconfigured, NotPermitted, Unavailable

LONG = 60.0


def never() -> bool:
    return False


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    with recording() as recorder:
        yield recorder


def tell(url: str, *keys: bytes, seconds: float = LONG, stopped: Callable[[], bool] = never) -> str:
    return Webhook(url, lambda: list(keys), seconds).tell(NOTICE, stopped)


# ------------------------------------------------------------------------------------------------------ what is posted


def test_a_notice_is_one_json_object_with_the_headers_of_standard_webhooks(recorder: Recorder) -> None:
    before = int(time.time())
    assert tell(f"{recorder.url}/a/b?c=d", b"key") == f"{recorder.url} answered 204"
    (post,) = recorder.posts
    assert post.json == TOLD
    assert post.path == "/a/b?c=d"
    assert post.headers["content-type"] == "application/json"
    assert post.headers["webhook-id"] == "fold-abc"
    assert before <= int(post.headers["webhook-timestamp"]) <= time.time()
    assert post.signed_by(b"key")
    assert not post.signed_by(b"other")


def test_each_key_signs_so_that_one_can_follow_another(recorder: Recorder) -> None:
    tell(recorder.url, b"old", b"new")
    (post,) = recorder.posts
    assert post.signed_by(b"old")
    assert post.signed_by(b"new")


def test_without_a_key_nothing_is_signed(recorder: Recorder) -> None:
    tell(recorder.url)
    (post,) = recorder.posts
    assert "webhook-signature" not in post.headers
    assert post.path == "/"


def test_a_signature_is_that_of_the_published_example() -> None:
    """From the specification of Standard Webhooks: its key, its message, its signature."""
    key = base64.b64decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    body = b'{"test": 2432232314}'
    headers = signed("msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, body, [key])
    assert headers["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_who_an_address_names_is_sent_as_the_web_has_it(recorder: Recorder) -> None:
    tell(f"http://eve:p%40ss@127.0.0.1:{recorder.port}/")
    (post,) = recorder.posts
    assert base64.b64decode(post.headers["authorization"].removeprefix("Basic ")) == b"eve:p@ss"
    assert post.headers["host"] == f"127.0.0.1:{recorder.port}"


# --------------------------------------------------------------------------------------------------------- what is told


@pytest.mark.parametrize("status", [200, 201, 204, 299])
def test_two_hundreds_are_told(recorder: Recorder, status: int) -> None:
    recorder.answer = lambda post: status
    assert str(status) in tell(recorder.url)


@pytest.mark.parametrize("status", [301, 302, 307, 308, 400, 401, 404, 410, 429, 500, 503])
def test_all_else_is_not_and_no_redirect_is_followed(recorder: Recorder, status: int) -> None:
    recorder.answer = lambda post: status
    with pytest.raises(Unavailable, match=f"^http://127.0.0.1:{recorder.port} answered {status}$"):
        tell(f"{recorder.url}/secret")
    assert [post.path for post in recorder.posts] == ["/secret"]


def test_where_nobody_listens_is_said_without_the_path() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        with pytest.raises(Unavailable) as raised:
            tell(f"http://canary:canary@127.0.0.1:{port}/canary?canary#canary")
    assert str(raised.value) == f"http://127.0.0.1:{port}: Connection refused"


@contextmanager
def answering(serve: Callable[[socket.socket], None]) -> Iterator[str]:
    """Have one connection served as `serve` does, byte by byte if it likes; gives the address."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(LONG)

        def take() -> None:
            with server.accept()[0] as connection:
                connection.settimeout(LONG)
                try:
                    serve(connection)
                except OSError:  # it hung up
                    pass

        thread = threading.Thread(target=take)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}/canary"
        thread.join(LONG)
        assert not thread.is_alive()


def drip(connection: socket.socket) -> None:
    """Answer, a byte now and then, without end."""
    connection.recv(1 << 16)
    connection.sendall(b"HTTP/1.1 200 OK\r\nX: ")
    while True:
        connection.sendall(b"x")
        time.sleep(0.02)


def silence(connection: socket.socket) -> None:
    while connection.recv(1 << 16):
        pass


@pytest.mark.parametrize("serve", [drip, silence])
def test_an_answer_without_end_is_left_in_time(serve: Callable[[socket.socket], None]) -> None:
    with answering(serve) as url, pytest.raises(Unavailable, match=r"^http://127.0.0.1:\d+: no answer within 0.5 s$"):
        tell(url, seconds=0.5)


@pytest.mark.parametrize("serve", [drip, silence])
def test_a_post_ends_when_it_is_to_stop(serve: Callable[[socket.socket], None]) -> None:
    with answering(serve) as url, pytest.raises(Unavailable):
        tell(url, seconds=LONG * 10, stopped=lambda: True)


@pytest.mark.parametrize(
    "said",
    [b"", b"canary\r\n\r\n", b"HTTP/1.1 canary\r\n\r\n", b"HTTP/1.1 200 OK\r\n" + b"canary: x\r\n" * 200 + b"\r\n"],
)
def test_what_is_no_answer_is_not_told_and_none_of_it_is_shown(said: bytes) -> None:
    def serve(connection: socket.socket) -> None:
        connection.recv(1 << 16)
        connection.sendall(said)

    with answering(serve) as url, pytest.raises(Unavailable) as raised:
        tell(url)
    assert "canary" not in str(raised.value)


def test_no_body_is_read(recorder: Recorder) -> None:
    def serve(connection: socket.socket) -> None:
        connection.recv(1 << 16)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000000\r\n\r\n")
        while True:
            connection.sendall(b"x" * 65536)

    with answering(serve) as url:
        assert tell(url).endswith("answered 200")


def test_a_certificate_that_nobody_vouches_for_is_not_told(tmp_path: Path) -> None:
    with (
        answering(lambda connection: connection.sendall(b"no TLS at all")) as url,
        pytest.raises(Unavailable) as raised,
    ):
        tell(url.replace("http:", "https:"))
    assert str(raised.value).startswith("https://127.0.0.1:")
    assert "canary" not in str(raised.value)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://user:pass@Example.org:8443/path?query#x", "https://example.org:8443"),
        ("http://[::1]:80/path", "http://[::1]:80"),
        ("https://example.org", "https://example.org"),
    ],
)
def test_of_an_address_only_the_host_is_shown(url: str, shown: str) -> None:
    assert shown_url(url) == shown


# ---------------------------------------------------------------------------------------------------------------- keys


def test_keys_are_lines_in_base64_or_as_they_stand(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("whsec_a2V5\n\nplain+key\n")
    assert read_keys(tmp_path / "keys") == [b"key", b"plain+key"]


@pytest.mark.parametrize("text", ["", "\n", "whsec_", "whsec_canary!"])
def test_a_file_without_keys_is_said_to_be_one_and_not_shown(tmp_path: Path, text: str) -> None:
    (tmp_path / "keys").write_text(text)
    with pytest.raises(Misconfigured) as raised:
        read_keys(tmp_path / "keys")
    assert "canary" not in f"{raised.value} {raised.value.hint}"
    with pytest.raises(Misconfigured):
        read_keys(tmp_path / "none")


def test_keys_that_cannot_be_read_are_the_operators(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> str:
        raise PermissionError

    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(NotPermitted):
        read_keys(tmp_path / "keys")


def test_keys_are_read_for_each_post(recorder: Recorder) -> None:
    keys = [b"one"]
    hook = Webhook(recorder.url, lambda: list(keys), LONG)
    hook.tell(NOTICE, never)
    keys[0] = b"two"
    hook.tell(NOTICE, never)
    assert [post.signed_by(b"two") for post in recorder.posts] == [False, True]


def test_a_key_that_is_missing_is_no_post(recorder: Recorder, tmp_path: Path) -> None:
    hook = Webhook(recorder.url, lambda: read_keys(tmp_path / "none"), LONG)
    with pytest.raises(MergdError):
        hook.tell(NOTICE, never)
    assert recorder.posts == list[Post]()
