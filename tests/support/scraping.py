"""Reads figures as Prometheus does, and asks a port of this machine."""

import http.client
import socket
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

Labels = frozenset[tuple[str, str]]


@dataclass(frozen=True)
class Scrape:
    """The samples of one scrape."""

    samples: Mapping[tuple[str, Labels], float]
    kinds: Mapping[str, str]  # by family

    @property
    def names(self) -> set[str]:
        """The names that a query may use."""
        return {name for name, _ in self.samples}

    def value(self, name: str, **labels: str) -> float:
        """Return the one sample with these labels, among others."""
        wanted = frozenset(labels.items())
        (value,) = (value for (found, has), value in self.samples.items() if found == name and wanted <= has)
        return value

    def labels(self) -> dict[str, set[str]]:
        """Return the values of each label."""
        found: dict[str, set[str]] = {}
        for _, labels in self.samples:
            for label, value in labels:
                found.setdefault(label, set()).add(value)
        return found


def scrape(text: str) -> Scrape:
    """Return what a text says."""
    families = list(text_string_to_metric_families(text))
    samples = {
        (sample.name, frozenset(sample.labels.items())): sample.value for one in families for sample in one.samples
    }
    return Scrape(samples, {one.name: one.type for one in families})


@dataclass(frozen=True)
class Answer:
    """What a server said."""

    status: int
    text: str
    headers: Mapping[str, str]


def ask(port: int, path: str, method: str = "GET", body: bytes | None = None, **headers: str) -> Answer:
    """Ask a port of this machine; an underscore in a header's name is a hyphen."""
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30)) as connection:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, body, named)
        answer = connection.getresponse()
        return Answer(answer.status, answer.read().decode(), dict(answer.getheaders()))


def free_port() -> int:
    """Return a port that nobody listens at."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port
