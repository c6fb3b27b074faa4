"""What never lies on the disk, read in any order: each byte as the Hub vouches for it, and no more asked for than needed.

It runs in a process of its own, because the client reads where the Hub is when it is imported.
"""

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from fakehub import FakeHub, Fault, Request
from hub_server.faults import Line
from hub_server.messages import Answer

from mergd.plugins.sources.hub import streaming
from mergd.plugins.sources.hub.files import Repository
from mergd.plugins.sources.hub.line import Line as HubLine

READ = """
import json, sys
from hashlib import sha256
from pathlib import Path
from mergd.plugins.sources.hub.files import files_of
from mergd.plugins.sources.hub.line import Line
from mergd.plugins.sources.hub.spool import Spool, Unwanted
from mergd.plugins.sources.hub.streaming import Vouching
from mergd.state.errors import MergdError
commit, root, spans, ends = sys.argv[1:]
line = Line(0)
spool = Spool(Path(root), line, lambda: False)
repository = files_of("acme/a", commit)
folder = spool.bring_headers(repository)
went_by = []
vouching = Vouching(line, repository, folder)
def advance(nbytes):
    went_by.append(nbytes)
    if sum(went_by) > int(ends):
        raise Unwanted
try:
    stream = vouching.go_on(advance, lambda: False)
except Unwanted:
    went_by.clear()
    stream = vouching.go_on(went_by.append, lambda: False)
blocks = sum(path.stat().st_blocks for path in folder.iterdir())
fill, found = stream.open(), []
for name, offset, nbytes in json.loads(spans):
    view = bytearray(nbytes)
    try:
        fill(memoryview(view), str(folder / name), offset)
    except MergdError as error:
        found.append(str(error))
    else:
        found.append(sha256(view).hexdigest())
print(json.dumps({"found": found, "blocks": blocks, "went_by": sum(went_by)}))
"""

MEBIBYTE = 2**20
NAMES = ("a.safetensors", "b.safetensors")
Span = tuple[str, int, int]  # of which file, from where, and how many bytes


def weights(nbytes: int, seed: int) -> bytes:
    """Return a safetensors file of so many bytes in all."""
    header = b"".ljust(200)
    return len(header).to_bytes(8, "little") + header + random.Random(seed).randbytes(nbytes - 208)


FILES = {NAMES[0]: weights(5 * MEBIBYTE + 17, 1), NAMES[1]: weights(2 * MEBIBYTE, 2)}


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with FakeHub(keep_alive=True) as hub:
        yield hub


def read(
    hub: FakeHub, at: Path, spans: Sequence[Span], files: dict[str, bytes] = FILES, ends: int = 2**40
) -> dict[str, Any]:
    """Have these spans read, one after the other, by one reader; what goes by first gives way once, after so many bytes."""
    commit = hub.push("acme/a", files | {"config.json": b"{}"})
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
    done = subprocess.run(
        [sys.executable, "-c", READ, commit, str(at / "spool"), json.dumps(spans), str(ends)],
        env=kept | {"HF_ENDPOINT": hub.url, "HF_HOME": str(at / "hf")},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def right(spans: Sequence[Span]) -> list[str]:
    return [sha256(FILES[name][offset : offset + nbytes]).hexdigest() for name, offset, nbytes in spans]


def asked(hub: FakeHub) -> list[str]:
    """Return which ranges of weights were asked for after they had gone by."""
    ranges = [request.range or "" for request in hub.requests if request.path.endswith(".safetensors")]
    return [one for one in ranges if one not in ("bytes=0-", "bytes=0-99999")]


def test_any_span_in_any_order_has_its_bytes(hub: FakeHub, tmp_path: Path) -> None:
    drawn, spans = random.Random(3), list[Span]()
    for _ in range(60):
        name = drawn.choice(NAMES)
        offset = drawn.randrange(len(FILES[name]))
        spans.append((name, offset, min(drawn.choice((1, 100, MEBIBYTE, 3 * MEBIBYTE)), len(FILES[name]) - offset)))
    spans += [(name, 0, len(data)) for name, data in FILES.items()]
    spans += [(name, len(data) - 1, 1) for name, data in FILES.items()]
    found = read(hub, tmp_path, spans)
    assert found["found"] == right(spans)
    assert found["went_by"] == sum(map(len, FILES.values()))
    assert found["blocks"] * 512 < 50_000, "headers alone"


def test_who_reads_from_front_to_back_asks_for_each_byte_once_and_more_of_them_each_time(
    hub: FakeHub, tmp_path: Path
) -> None:
    nbytes = len(FILES[NAMES[0]])
    spans = [(NAMES[0], start, min(300_000, nbytes - start)) for start in range(0, nbytes, 300_000)]
    assert read(hub, tmp_path, spans)["found"] == right(spans)
    assert asked(hub) == [f"bytes=0-{MEBIBYTE - 1}", f"bytes={MEBIBYTE}-{3 * MEBIBYTE - 1}", f"bytes={3 * MEBIBYTE}-"]


def test_what_gave_way_goes_on_where_it_was(hub: FakeHub, tmp_path: Path) -> None:
    ends, spans = len(FILES[NAMES[0]]) + MEBIBYTE // 2, [(name, 0, len(data)) for name, data in FILES.items()]
    found = read(hub, tmp_path, spans, ends=ends)
    assert found["found"] == right(spans)
    assert found["went_by"] == sum(map(len, FILES.values())), "what went by before counts"
    ranges = [request.range or "" for request in hub.requests if request.path.endswith(NAMES[1])]
    starts = [int(one.removeprefix("bytes=").split("-")[0]) for one in ranges if one.endswith("-")]
    assert starts[0] == 0
    assert starts[1] >= MEBIBYTE // 2
    assert "bytes=0-" not in ranges[2:]


class Flipped(Fault):
    """One bit of a file is another one, whoever asks for it, once it has gone by."""

    def __init__(self, at: int) -> None:
        self._at, self._went_by = at, 0

    def answer(self, line: Line, request: Request, serve: Callable[[], Answer]) -> Answer:
        answer, self._went_by = serve(), self._went_by + (request.range == "bytes=0-")
        if self._went_by < len(FILES) or request.range == "bytes=0-":
            return answer
        body = bytearray(answer.body)
        body[self._at] ^= 1
        return replace(answer, body=bytes(body))


@pytest.mark.parametrize("at", [0, 7, MEBIBYTE - 1, MEBIBYTE, 2 * MEBIBYTE - 1])
def test_one_bit_in_a_block_and_nothing_of_that_block_is_given(hub: FakeHub, tmp_path: Path, at: int) -> None:
    hub.fault(r"GET .*safetensors", Flipped(at), times=None)
    spans = [(NAMES[1], number * MEBIBYTE, MEBIBYTE) for number in range(2)]
    found, wrong = read(hub, tmp_path, spans)["found"], at // MEBIBYTE
    assert found[wrong] == f"{NAMES[1]} of acme/a came with other bytes than before"
    assert found[1 - wrong] == right(spans)[1 - wrong]


class Whole(Fault):
    """A server that does not know ranges."""

    def answer(self, line: Line, request: Request, serve: Callable[[], Answer]) -> Answer:
        answer = serve()
        return replace(answer, headers={k: v for k, v in answer.headers.items() if k != "Accept-Ranges"})


def test_a_hub_that_knows_no_ranges_gives_the_same_bytes(hub: FakeHub, tmp_path: Path) -> None:
    hub.fault(r"GET .*safetensors", Whole(), times=None)
    spans = [(NAMES[0], 3 * MEBIBYTE - 5, 10), (NAMES[1], 0, 2 * MEBIBYTE)]
    assert read(hub, tmp_path, spans)["found"] == right(spans)


def test_those_that_are_read_together_share_one_window() -> None:
    stream = streaming.Stream(HubLine(0), Repository("acme/a", "c" * 40, ()), {}, lambda: False)
    assert [stream.among(readers).window for readers in (1, 4, 100)] == [streaming.WINDOW, streaming.WINDOW // 4, 1]
