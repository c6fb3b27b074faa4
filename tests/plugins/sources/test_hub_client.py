"""The Hub's client, bounded: whatever the Hub does, a call ends in time and says what was wrong.

Each call is made in a process of its own, because the client reads where the Hub is when it is imported.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fakehub import Cdn, Drip, Elsewhere, FakeHub, Fault, Length, Request, Reset, Silence, Status, Truncated, too_many
from hub_server.faults import Line
from hub_server.messages import Answer

pytestmark = pytest.mark.long

LISTED = """
import json, sys, time
from mergd.plugins.sources.hub.client import Limited, within
from mergd.plugins.sources.hub.listing import newest_first
from mergd.state.errors import MergdError
began = time.monotonic()
try:
    with within(float(sys.argv[1])):
        found = {"repos": [one.repo for one in newest_first("acme")]}
except MergdError as error:
    found = {"error": type(error).__name__, "says": str(error), "seconds": getattr(error, "seconds", None)}
print(json.dumps(found | {"took": time.monotonic() - began}))
"""
FETCHED = """
import json
from pathlib import Path
from mergd.plugins.sources.hub.files import files_of
from mergd.plugins.sources.hub.line import Line
from mergd.plugins.sources.hub.spool import Spool
import sys
commit, root = sys.argv[1:]
spool = Spool(Path(root), Line(0), lambda: False)
repository = files_of("acme/a", commit)
folder = spool.bring_headers(repository)
holes = (folder / "model.safetensors").read_bytes()
spool.bring(repository, folder, lambda nbytes: None)
print(json.dumps({"files": sorted(p.name for p in folder.iterdir()), "zeros": holes.count(0), "holds": repository.holds}))
"""


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with FakeHub(page_size=2) as hub:
        for k in range(5):
            hub.push(f"acme/{k}", {"config.json": b"{}"}, when=float(k))
        yield hub


def run(hub: FakeHub, code: str, *words: object, home: Path, **environment: str) -> dict[str, Any]:
    """Run some lines against a Hub."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
    asked = kept | {"HF_ENDPOINT": hub.url, "HF_HOME": str(home)} | environment
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, words)],
        env=asked,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_a_listing_goes_over_all_pages_the_newest_first(hub: FakeHub, tmp_path: Path) -> None:
    assert run(hub, LISTED, 30, home=tmp_path)["repos"] == [f"acme/{k}" for k in reversed(range(5))]


@pytest.mark.parametrize(
    ("fault", "error", "says"),
    [
        (too_many(55), "Limited", "429"),
        (Status(429, {"Retry-After": "55"}), "Limited", "429"),
        (Status(503), "Limited", "503"),
        (Status(401), "NotPermitted", ""),
        (Status(403), "NotPermitted", ""),
        (Drip(0.2), "Unavailable", "took too long"),
        (Silence(600), "Unavailable", ""),
        (Length(1000), "Unavailable", ""),
        (Truncated(10), "Unavailable", ""),
        (Reset(), "Unavailable", ""),
    ],
)
def test_whatever_it_answers_a_call_ends(hub: FakeHub, tmp_path: Path, fault: Any, error: str, says: str) -> None:
    hub.fault("GET /api/models", fault, times=None)
    found = run(hub, LISTED, 3, home=tmp_path)
    assert (found["error"], says in found["says"]) == (error, True), found
    assert found["took"] < 30, "a bound that is not kept"
    if error == "Limited" and fault.status == 429:
        assert found["seconds"] == 55


def test_nobody_listens(tmp_path: Path) -> None:
    with FakeHub() as gone:
        pass
    found = run(gone, LISTED, 3, home=tmp_path)
    assert found["error"] == "Unavailable"
    assert found["took"] < 30


def test_offline_nothing_is_asked(hub: FakeHub, tmp_path: Path) -> None:
    found = run(hub, LISTED, 3, home=tmp_path, HF_HUB_OFFLINE="1")
    assert (found["error"], "offline" in found["says"].lower()) == ("Unavailable", True)
    assert hub.asked == []


def weights(nbytes: int) -> bytes:
    """Return a safetensors file of one tensor, none of whose bytes is zero."""
    header = json.dumps({"w": {"dtype": "U8", "shape": [nbytes], "data_offsets": [0, nbytes]}}).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + b"\x01" * nbytes


def test_headers_come_first_and_only_what_counts(hub: FakeHub, tmp_path: Path) -> None:
    files = {
        "model.safetensors": weights(300_000), "config.json": b"{}", "README.md": b"", "pytorch_model.bin": b"x",
        "onnx/model.safetensors": b"x", "evil.safetensors.index.json": b"{}", "run.py": b"",
    }  # fmt: skip
    commit = hub.push("acme/a", files)
    found = run(hub, FETCHED, commit, tmp_path / "spool", home=tmp_path)
    assert found["files"] == ["config.json", "evil.safetensors.index.json", "model.safetensors"]
    assert found["zeros"] >= 300_000, "the numbers were holes when the headers had come"
    (folder,) = (tmp_path / "spool").iterdir()
    assert (folder / "model.safetensors").read_bytes() == files["model.safetensors"]


def test_equal_files_hold_the_same(hub: FakeHub, tmp_path: Path) -> None:
    files = {"model.safetensors": weights(1000), "config.json": b"{}"}
    held = []
    for k, more in enumerate(
        ({}, {"README.md": b"news"}, {"config.json": b'{"a": 1}'}, {"model.safetensors": weights(1001)})
    ):
        commit = hub.push("acme/a", files | more)
        held.append(run(hub, FETCHED, commit, tmp_path / str(k), home=tmp_path)["holds"])
    assert held[0] == held[1]
    assert len(set(held)) == 3


def test_the_token_is_not_told_to_another_host(hub: FakeHub, tmp_path: Path) -> None:
    from fakehub import Account

    hub.tokens["hf_secret"] = Account("ada", ("acme",))
    commit = hub.push("acme/a", {"model.safetensors": weights(1000), "config.json": b"{}"})
    with Cdn() as cdn:
        hub.fault(r"GET .*/model.safetensors", Elsewhere(cdn), times=None)
        run(hub, FETCHED, commit, tmp_path / "spool", home=tmp_path, HF_TOKEN="hf_secret")
        assert cdn.requests
        assert {request.token for request in cdn.requests} == {None}
    assert {request.token for request in hub.requests} == {"hf_secret"}


BOUNDED = """
import json, sys
from pathlib import Path
from mergd.plugins.sources.hub import files, spool
from mergd.plugins.sources.hub.line import Line
from mergd.state.errors import Refused, Unavailable
commit, root, headers, small, keep_free = sys.argv[1:]
spool.MOST_HEADERS, files.MOST_SMALL, spool.LOOKS = int(headers), int(small), 1
said = {}
try:
    here = spool.Spool(Path(root), Line(0), lambda: False)
    repository = files.files_of("acme/a", commit)
    folder = here.bring_headers(repository)
    here.bring(repository, folder, lambda nbytes: None, keep_free=lambda: int(keep_free))
except (Refused, Unavailable) as error:
    said = {"error": type(error).__name__, "says": str(error)}
kept = [path for path in Path(root).rglob("*") if path.is_file()]
print(json.dumps(said | {"left": [path.stat().st_blocks * 512 for path in kept]}))
"""


@pytest.mark.parametrize(
    ("bounds", "error", "says"),
    [
        ((1000, 1000, 0), None, ""),
        ((150, 1000, 0), "Refused", "headers of more than 150 B"),
        ((1000, 1, 0), "Refused", "configuration, indexes"),
        ((1000, 1000, 2**60), "NoRoom", "make room: "),
    ],
)
def test_what_one_repository_may_cost_is_bounded(
    hub: FakeHub, tmp_path: Path, bounds: tuple[int, ...], error: str | None, says: str
) -> None:
    files = {f"model-0000{k}-of-00003.safetensors": weights(100_000) for k in (1, 2, 3)}
    commit = hub.push("acme/a", files | {"config.json": b"{}"})
    found = run(hub, BOUNDED, commit, tmp_path / "spool", *bounds, home=tmp_path)
    assert (found.get("error"), says in found.get("says", "")) == (error, True), found
    if error == "NoRoom":
        assert found["left"] == [], "what came is deleted, so that folding goes on"


ONCE_MORE = """
import json, sys
from pathlib import Path
from mergd.plugins.sources.hub import spool
from mergd.plugins.sources.hub.again import Again
from mergd.plugins.sources.hub.line import Line
from mergd.plugins.sources.interface import Later
from mergd.state.records import Sighting
commit, root, keep_free = sys.argv[1:]
spool.LOOKS = 1
sighting = Sighting("hub", "hf://acme/a", "acme/a", (), revision=commit)
bring = Again(Path(root), Line(0), most=None, tokens=False, keep_free=lambda: int(keep_free), stopped=lambda: False).bring
said = ""
try:
    bring(sighting, lambda nbytes: None, lambda nbytes: None, print, lambda here: None, 0.0, 0.0)
except Later as error:
    said = str(error)
print(json.dumps({"says": said, "left": [path.name for path in Path(root).rglob("*.safetensors")]}))
"""


@pytest.mark.parametrize(("keep_free", "says", "left"), [(0, "", 1), (2**60, "make room: ", 0)])
def test_what_is_fetched_again_leaves_room_too(
    hub: FakeHub, tmp_path: Path, keep_free: int, says: str, left: int
) -> None:
    commit = hub.push("acme/a", {"model.safetensors": weights(1000), "config.json": b"{}"})
    found = run(hub, ONCE_MORE, commit, tmp_path / "spool", keep_free, home=tmp_path)
    assert says in found["says"]
    assert bool(found["says"]) == bool(says)
    assert len(found["left"]) == left


POLLED = """
import json, sys, tempfile, threading, time
from pathlib import Path
from mergd.plugins.sources.hub import namespace
from mergd.plugins.sources.hub.listing import Wanted
from mergd.plugins.sources.interface import Room
namespace.POLL = 1.0
source = namespace.Namespace("acme", Wanted("", ("acme/*",)), Path(sys.argv[1]))
source.begin(None, lambda: None, Room)
source.poll()
found = source.scan(None)
print(json.dumps({"trouble": found.trouble, "left": [t.name for t in threading.enumerate() if t.name == "mergd-hub-poll"]}))
"""


class EndlessHeaders(Fault):
    """The lines of a header, one after the other, without an end."""

    def answer(self, line: Line, request: Request, serve: Callable[[], Answer]) -> Answer:
        line.write(b"HTTP/1.1 200 OK\r\n")
        while True:
            line.write(b"X-More: a\r\n")
            line.wait(0.2)


def test_a_header_that_never_ends_holds_up_neither_a_poll_nor_the_end(hub: FakeHub, tmp_path: Path) -> None:
    hub.fault("GET /api/models", EndlessHeaders(), times=None)
    found = run(hub, POLLED, tmp_path / "spool", home=tmp_path)
    assert "took too long" in found["trouble"]
    assert found["left"], "it still hangs, beneath every bound"
