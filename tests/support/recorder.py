"""A web server on the loopback that records what is posted to it, and answers as a test says."""

import base64
import hmac
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Post:
    """What was posted."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.body)
        return found

    def signed_by(self, key: bytes) -> bool:
        """Whether one of its signatures is that of a key, as a receiver would find out."""
        content = f"{self.headers['webhook-id']}.{self.headers['webhook-timestamp']}.".encode() + self.body
        mark = "v1," + base64.b64encode(hmac.new(key, content, "sha256").digest()).decode()
        return any(hmac.compare_digest(mark, one) for one in self.headers["webhook-signature"].split())


@dataclass
class Recorder:
    """What came so far. `answer` gives the status for each post, once it returns."""

    port: int
    posts: list[Post] = field(default_factory=list)
    answer: Callable[[Post], int] = lambda post: 204
    body: bytes = b""  # of each answer

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def told(self) -> list[tuple[str, int | None]]:
        """Return kind and version of each post, in the order in which they came."""
        return [(post.json["kind"], post.json["version"]) for post in list(self.posts)]


@contextmanager
def recording() -> Iterator[Recorder]:
    """Give a recorder that listens."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            headers = {name.lower(): value for name, value in self.headers.items()}
            post = Post(self.path, headers, self.rfile.read(int(headers.get("content-length", "0"))))
            status = recorder.answer(post)
            recorder.posts.append(post)
            self.send_response(status)
            if 300 <= status < 400:
                self.send_header("Location", f"{recorder.url}/elsewhere")
            self.send_header("Content-Length", str(len(recorder.body)))
            self.end_headers()
            self.wfile.write(recorder.body)

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing."""

    class Server(ThreadingHTTPServer):
        def handle_error(self, request: Any, client_address: Any) -> None:
            """Whoever hung up may."""

    server = Server(("127.0.0.1", 0), Handler)
    server.daemon_threads = False
    recorder = Recorder(server.server_port)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield recorder
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
