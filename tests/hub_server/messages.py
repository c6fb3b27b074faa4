"""What goes over the wire to a server on the loopback and back: requests, their record, answers, and problems as answers."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

RANGE = re.compile(r"bytes=(\d*)-(\d*)")


@dataclass(frozen=True)
class Request:
    """One request: its target as it came (quoted), its headers by lower-case name, and its body."""

    method: str
    target: str
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""

    @property
    def path(self) -> str:
        """The path, still quoted: a branch may have a slash in its name."""
        return urlsplit(self.target).path

    @property
    def query(self) -> dict[str, list[str]]:
        """Each parameter's values; `expand[]` and `expand` are the same."""
        found = parse_qs(urlsplit(self.target).query, keep_blank_values=True)
        return {name.removesuffix("[]"): values for name, values in found.items()}

    def first(self, name: str, otherwise: str = "") -> str:
        """Return the first value of a parameter."""
        return self.query.get(name, [otherwise])[0]

    @property
    def token(self) -> str | None:
        """The token that came along."""
        authorization = self.headers.get("authorization")
        return authorization.removeprefix("Bearer ") if authorization else None

    @property
    def range(self) -> str | None:
        """The part of a file that is asked for."""
        return self.headers.get("range")

    def __str__(self) -> str:
        return f"{self.method} {unquote(self.path)}"

    def json(self) -> dict[str, Any]:
        """Return the body, which is a JSON object."""
        read: dict[str, Any] = json.loads(self.body or b"{}")
        return read


@dataclass(frozen=True)
class Answer:
    """Status, body and headers; a HEAD request gets the same without the body."""

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)

    def part(self, asked: str | None) -> "Answer":
        """Return what a Range header asks for, of an answer that has `Accept-Ranges`."""
        match = RANGE.fullmatch(asked or "")
        if self.status != 200 or not match or "Accept-Ranges" not in self.headers:
            return self
        size = len(self.body)
        if match[1]:
            start, end = int(match[1]), min(int(match[2] or size), size - 1)
        else:
            start, end = max(size - int(match[2] or 0), 0), size - 1
        if start > end:
            return Answer(416, b"", {"Content-Range": f"bytes */{size}"})
        headers = {**self.headers, "Content-Range": f"bytes {start}-{end}/{size}"}
        return replace(self, status=206, body=self.body[start : end + 1], headers=headers)


def json_answer(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Answer:
    """Return an answer in JSON."""
    return Answer(status, json.dumps(value).encode(), {"Content-Type": "application/json", **(headers or {})})


class Problem(Exception):
    """An answer that is raised: the Hub's status, its error code and its message."""

    def __init__(self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(f"{status} {message}")
        told = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {}), **(headers or {})}
        self.answer = json_answer({"error": message}, status, told)
