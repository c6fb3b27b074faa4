"""A small Hugging Face Hub on the loopback, for the real client: repositories with commits, a branch, gates and outages."""

import hashlib
import json
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import unquote, urlsplit

API = re.compile(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/(.+))?")
FILE = re.compile(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)")


@dataclass
class Repository:
    """What was pushed to one repository; `main` is its last commit."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    gated: bool = False

    def at(self, revision: str) -> str | None:
        """Return the commit that a revision means."""
        return list(self.commits)[-1] if revision == "main" else revision if revision in self.commits else None


class FakeHub:
    """Serves while entered, at `url`; `asked` has each request, and those that match `broken` fail."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.asked: list[str] = []
        self.broken = r"(?!)"  # a pattern of paths; this one matches none
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = False
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), name="fake-hub")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def push(self, repo: str, files: Mapping[str, bytes], gated: bool = False) -> str:
        """Make a commit that holds exactly these files, move `main` to it, and return its 40 digits."""
        repository = self.repositories.setdefault(repo, Repository(gated=gated))
        known = [repo, len(repository.commits), sorted((name, _sha256(data)) for name, data in files.items())]
        commit = hashlib.sha1(json.dumps(known).encode()).hexdigest()
        repository.commits[commit] = dict(files)
        return commit

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        hub = self

        class Handler(BaseHTTPRequestHandler):
            """Answers one request on each connection: HTTP/1.0, so that no thread waits for a second one."""

            def do_GET(self) -> None:
                path = unquote(urlsplit(self.path).path)
                hub.asked.append(f"{self.command} {path}")
                status, headers, body = hub.answer(path)
                self.send_response(status)
                for key, value in ({"Content-Length": str(len(body))} | headers).items():
                    self.send_header(key, value)
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body)

            do_HEAD = do_GET

            def log_message(self, format: str, *arguments: Any) -> None:
                pass

        return Handler

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        """Return status, headers and body for one path."""
        if re.search(self.broken, path):
            return 500, {}, b""
        if match := API.fullmatch(path):
            repo, what, revision = match[1], match[2] or "revision", match[3] or "main"
        elif match := FILE.fullmatch(path):
            repo, revision, what = match[1], match[2], match[3]
        else:
            return _error(404, "RouteNotFound", path)
        if repo not in self.repositories:
            return _error(404, "RepoNotFound", "Repository not found")
        repository = self.repositories[repo]
        commit = repository.at(revision)
        if commit is None:
            return _error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        if path.startswith("/api/"):
            return _json(_info(repo, commit, repository) if what == "revision" else _tree(repository.commits[commit]))
        if repository.gated:
            return _error(403, "GatedRepo", f"Access to model {repo} is restricted")
        return _file(repository.commits[commit], what, commit)


def _info(repo: str, commit: str, repository: Repository) -> dict[str, Any]:
    siblings = [{"rfilename": name} for name in sorted(repository.commits[commit])]
    gated = "manual" if repository.gated else False
    return {
        "id": repo,
        "modelId": repo,
        "sha": commit,
        "private": False,
        "gated": gated,
        "siblings": siblings,
        "tags": [],
    }


def _tree(files: Mapping[str, bytes]) -> list[dict[str, Any]]:
    return [{"type": "file", "path": name, "size": len(data), **_ids(name, data)} for name, data in files.items()]


def _ids(name: str, data: bytes) -> dict[str, Any]:
    if not name.endswith(".safetensors"):
        return {"oid": _git_id(data)}
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{_sha256(data)}\nsize {len(data)}\n".encode()
    lfs = {"oid": _sha256(data), "size": len(data), "pointerSize": len(pointer)}
    return {"oid": _git_id(pointer), "lfs": lfs}


def _file(files: Mapping[str, bytes], name: str, commit: str) -> tuple[int, dict[str, str], bytes]:
    if name not in files:
        status, headers, body = _error(404, "EntryNotFound", f"{name} does not exist")
        return status, headers | {"X-Repo-Commit": commit}, body
    data = files[name]
    etag = _sha256(data) if name.endswith(".safetensors") else _git_id(data)
    return 200, {"X-Repo-Commit": commit, "ETag": f'"{etag}"', "X-Linked-Size": str(len(data))}, data


def _json(value: Any) -> tuple[int, dict[str, str], bytes]:
    return 200, {"Content-Type": "application/json"}, json.dumps(value).encode()


def _error(status: int, code: str, message: str) -> tuple[int, dict[str, str], bytes]:
    body = json.dumps({"error": message}).encode()
    return status, {"Content-Type": "application/json", "X-Error-Code": code, "X-Error-Message": message}, body


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _git_id(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
