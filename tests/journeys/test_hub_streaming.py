"""`hub.stream`: a checkpoint is folded straight from ranges, and never lies on the disk; nothing in it is folded unvouched."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fakehub import Account, Before, FakeHub, Fault, Request, Silence, Status, Truncated
from hub_server.faults import Line
from hub_server.messages import Answer
from safetensors.torch import save
from support.commands import Command, eventually
from support.hub import NAMESPACE, OF_BASE, HubMerge, files_of, hub_merge
from support.merges import make_merge, set_in
from support.models import Model, save_sharded, tiny_base

from mergd.plugins.sources.hub.line import SILENCE
from mergd.state.history import History
from mergd.state.store import BALLAST

pytestmark = pytest.mark.long

WEIGHTS = r"\.safetensors"
HEADER = "bytes=0-99999"


def large() -> Model:
    """Return a base model of 6.4 MB: several blocks."""
    torch.manual_seed(0)
    return tiny_base() | {f"layers.{k}.mlp.weight": torch.randn(400, 500) for k in range(8)}


@dataclass
class Later(Fault):
    """Nothing wrong while a file goes by once; then what is read of it meets a fault."""

    fault: Fault
    first: int = 0  # parts that meet none
    met: int = 0
    meets: bool = False

    def answer(self, line: Line, request: Request, serve: Callable[[], Answer]) -> Answer:
        self.meets = self._meets(request)
        return self.fault.answer(line, request, serve) if self.meets else serve()

    def write(self, line: Line, body: bytes) -> None:
        self.fault.write(line, body) if self.meets else line.write(body)

    def _meets(self, request: Request) -> bool:
        if request.range in ("bytes=0-", HEADER):
            return False
        self.met += 1
        return self.met > self.first


class Flipped(Fault):
    """Every tenth number is another one."""

    def answer(self, line: Line, request: Request, serve: Callable[[], Answer]) -> Answer:
        right = serve()
        body = bytearray(right.body)
        body[50_000::10] = bytes(byte ^ 1 for byte in body[50_000::10])
        return replace(right, body=bytes(body))


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with FakeHub(keep_alive=True) as hub:
        yield hub


@pytest.fixture
def merge(hub: FakeHub, tmp_path: Path) -> HubMerge:
    settings: dict[str, Any] = {"hub.stream": True}
    return hub_merge(tmp_path, hub, model=large(), **settings)


@contextmanager
def peak_of(folder: Path) -> Iterator[list[int]]:
    """Give the most bytes that were allocated in a folder, looked at every few milliseconds."""
    most, ended = [0], threading.Event()

    def look() -> None:
        while not ended.wait(0.002):
            try:
                most[0] = max(most[0], sum(path.stat().st_blocks * 512 for path in folder.rglob("*")))
            except FileNotFoundError:  # it went while it was looked at
                continue

    watching = threading.Thread(target=look)
    watching.start()
    try:
        yield most
    finally:
        ended.set()
        watching.join()


def push_sharded(merge: HubMerge, name: str, seed: int) -> None:
    files = files_of(save_sharded(merge.root / f"aside-{name}", merge.fine_tuned(seed)))
    merge.hub.push(f"{NAMESPACE}/{name}", files, tags=[OF_BASE])


# ------------------------------------------------------------------------------------------------------- what is folded

RULES: dict[str, dict[str, Any]] = {
    "opcm": {},
    "one that surveys": {"rule": "ties", "normalise": True},
    "one that draws": {"rule": "dare"},
}


@pytest.mark.parametrize("rule", RULES)
def test_the_same_bytes_as_from_a_spool_and_none_of_them_on_the_disk(hub: FakeHub, tmp_path: Path, rule: str) -> None:
    spooled, streamed = both_ways(hub, tmp_path, **RULES[rule])
    spooled.push("plain", 1)
    push_sharded(spooled, "sharded", 2)
    spooled.push_adapter("adapter")
    peaks = []
    for merge in (spooled, streamed):
        with peak_of(merge.store.spool) as peak:
            done = merge.once()
        assert done.code == 0, done.err
        assert set(merge.hub_states().values()) == {"folded"}
        peaks.append(peak[0])
    spool, stream = peaks
    assert spool > 3_000_000, "most of a checkpoint"
    assert stream < 200_000, "a header or two"
    assert written(spooled) == written(streamed)
    assert len(written(streamed)) > 6, "versions, slots and the archived adapter"


def both_ways(hub: FakeHub, root: Path, **settings: Any) -> list[HubMerge]:
    """Return two merges of one namespace, of which the second folds straight from the Hub."""
    streams = {"spooled": False, "streamed": True}
    return [hub_merge(root / how, hub, model=large(), **settings | {"hub.stream": s}) for how, s in streams.items()]


def test_what_is_shipped_beside_the_weights_and_what_was_folded_before_come_so_too(
    hub: FakeHub, tmp_path: Path
) -> None:
    merges = both_ways(hub, tmp_path, rule="fisher", on_change="add")
    fisher = {name: torch.rand(tensor.shape) for name, tensor in large().items() if tensor.is_floating_point()}
    beside = {"fisher.safetensors": save(fisher)}
    for seed in (1, 2):
        merges[0].push("a", seed, beside)
        assert [merge.once().code for merge in merges] == [0, 0]
        assert [len(merge.versions()) for merge in merges] == [seed, seed]
    assert written(merges[0]) == written(merges[1])


def test_a_commit_that_stores_the_same_weights_otherwise_is_known(merge: HubMerge) -> None:
    merge.push("a", 1)
    assert merge.once().code == 0
    push_sharded(merge, "a", 1)
    assert merge.once().code == 0
    assert [row.state for row in merge.checkpoints()] == ["folded", "folded"], "else it is held, as a change"
    assert len(merge.versions()) == 1


def written(merge: HubMerge) -> dict[str, bytes]:
    """Return all weights that the state holds."""
    paths = [
        path for folder in ("models", "versions", "archive") for path in (merge.state / folder).rglob("*.safetensors")
    ]
    return {str(path.relative_to(merge.state)): path.read_bytes() for path in paths}


def test_what_the_spool_has_room_for_comes_once(merge: HubMerge) -> None:
    merge.config.write_text(
        merge.config.read_text().replace("# spool = 0", 'spool = "1MB"').replace("spool = 0", 'spool = "1MB"')
    )
    merge.push("full", 1)
    merge.push_adapter("adapter")
    merge.hub.requests.clear()
    assert merge.once().code == 0
    parts = {name: fetched(merge, name)[1:] for name in ("full", "adapter")}
    assert len(parts["full"]) > 2
    assert parts["adapter"] == ["bytes=0-"]


def test_it_waits_for_no_room(hub: FakeHub, tmp_path: Path) -> None:
    merge = hub_merge(tmp_path, hub, model=large())
    with make_merge(tmp_path / "alike", large()).loop() as loop:
        loop._work.worker.room()
        need = loop._work.worker.disk.need
    used = merge.mergd("status", "--json").json["disk"]["used"]
    set_in(merge.config, disk=str(used + BALLAST + need + 300_000))
    merge.push("a", 1)
    done = merge.once()
    assert done.code == 69
    assert "make room: " in done.err
    set_in(merge.config, **{"hub.stream": "true"})
    assert merge.once().code == 0
    assert merge.hub_states() == {"a": "folded"}


def fetched(merge: HubMerge, name: str) -> list[str]:
    """Return the ranges of a repository's weights that were asked for."""
    return [one.range or "" for one in merge.hub.requests if f"/{name}/" in one.path and ".safetensors" in one.path]


@pytest.fixture
def dropped(hub: FakeHub, tmp_path: Path) -> HubMerge:
    """Return a merge of which the first version's files were dropped, and its checkpoints lie on the Hub alone."""
    few: dict[str, Any] = {"keep_last": 1, "keep_within": 0, "keep_daily": 0, "keep_weekly": 0, "keep_slots": 1}
    merge = hub_merge(tmp_path, hub, model=large(), **few | {"hub.stream": True})
    for seed in (1, 2, 3):
        merge.push("abc"[seed - 1], seed)
        assert merge.once().code == 0
    assert not merge.versions()[0].kept
    return merge


def test_what_is_fetched_again_takes_none_of_the_disk_either(dropped: HubMerge) -> None:
    disk = []
    for stream in ("false", "true"):
        set_in(dropped.config, **{"hub.stream": stream})
        disk.append(dropped.mergd("remove", "acme/a", "-n", "--json").json["disk"])
    assert disk[0] - disk[1] == dropped.checkpoints()[1].nbytes, "one at a time, or none"
    with peak_of(dropped.store.spool) as peak:
        done = dropped.mergd("remove", "acme/a")
    assert done.code == 0, done.err
    assert peak[0] < 200_000, "a header"
    assert dropped.versions()[-1].totals.folded == 2
    assert dropped.mergd("verify").code == 0


def test_a_replay_whose_bytes_are_flipped_waits_for_the_right_ones(dropped: HubMerge) -> None:
    flipped = dropped.hub.fault(rf"GET .*/a/.*{WEIGHTS}", Later(Flipped(), 1), times=None)
    done = dropped.mergd("replay", "v1")
    assert done.code == 69
    assert "other bytes than before" in done.err
    assert "it is written down" in done.err
    flipped.end()
    assert dropped.once().code == 0
    assert dropped.versions()[0].kept


# ------------------------------------------------------------------------------------------------------- a bad Hub


class Swapped(Fault):
    """A header in which two weights have each other's names."""

    def answer(self, line: Line, request: Request, serve: Callable[[], Answer]) -> Answer:
        right = serve()
        if request.range != HEADER:
            return right
        body = right.body.replace(b"layers.0", b"layers.x").replace(b"layers.1", b"layers.0")
        return replace(right, body=body.replace(b"layers.x", b"layers.1"))


def test_a_byte_that_is_flipped_as_it_goes_by_is_never_folded(merge: HubMerge) -> None:
    merge.push("a", 1)
    merge.push("b", 2)
    flipped = merge.hub.fault(rf"GET .*/a/.*{WEIGHTS}", Flipped(), times=None)
    done = merge.once()
    assert done.code == 69
    assert "other bytes" in done.err
    assert merge.hub_states() == {"a": "settling", "b": "folded"}
    flipped.end()
    assert merge.once().code == 0
    assert merge.hub_states() == {"a": "folded", "b": "folded"}


@pytest.mark.parametrize("first", [0, 1, 3])
def test_a_byte_that_is_flipped_in_mid_fold_is_never_folded(merge: HubMerge, first: int) -> None:
    merge.push("a", 1)
    merge.push("b", 2)
    flipped = merge.hub.fault(rf"GET .*/a/.*{WEIGHTS}", Later(Flipped(), first), times=None)
    done = merge.once()
    assert done.code == 69
    assert "other bytes than before" in done.err
    assert merge.hub_states() == {"a": "ready", "b": "folded"}
    assert len(merge.versions()) == 1
    flipped.end()
    assert merge.once().code == 0
    assert merge.hub_states() == {"a": "folded", "b": "folded"}


def test_a_header_that_came_with_other_bytes_counts_as_it_is(hub: FakeHub, merge: HubMerge, tmp_path: Path) -> None:
    aside = hub_merge(tmp_path / "aside", hub, model=merge.model)
    merge.push("a", 1)
    assert aside.once().code == 0
    merge.hub.fault(WEIGHTS, Swapped(), times=None)
    assert merge.once().code == 0
    assert written(merge) == written(aside)


def test_a_connection_that_breaks_is_taken_up_where_it_broke(merge: HubMerge) -> None:
    merge.push("a", 1)
    broken = Later(Truncated(700_000))
    merge.hub.fault(WEIGHTS, broken, times=None)
    assert merge.once().code == 0
    assert merge.hub_states() == {"a": "folded"}
    assert broken.met > 6_400_000 / 700_000
    (row,) = merge.checkpoints()
    with History(merge.store.database) as history:
        assert [tried.outcome for tried in history.checkpoints.attempts(row.id)] == ["folded"]


def test_a_hub_that_goes_away_in_mid_fold_publishes_nothing(merge: HubMerge) -> None:
    merge.push("a", 1)
    gone = merge.hub.fault(WEIGHTS, Later(Status(503), 2), times=None)
    assert merge.once().code == 69
    assert merge.hub_states() == {"a": "ready"}
    assert merge.versions() == []
    gone.end()
    assert merge.once().code == 0
    assert merge.hub_states() == {"a": "folded"}


def test_what_is_deleted_in_mid_fold_has_vanished(merge: HubMerge) -> None:
    merge.push("a", 1)
    merge.hub.fault(WEIGHTS, Later(Before(lambda: merge.hub.repositories.pop(f"{NAMESPACE}/a", None)), 2), times=None)
    assert merge.once().code == 0
    assert merge.versions() == []
    assert merge.hub_states() == {"a": "vanished"}


@pytest.mark.parametrize(
    ("harm", "state"),
    [
        (lambda hub: setattr(hub.repositories[f"{NAMESPACE}/a"], "gated", "manual"), "blocked"),
        (lambda hub: hub.repositories.pop(f"{NAMESPACE}/a", None), "vanished"),
    ],
)
def test_a_daemon_looks_anew_at_what_is_not_given_any_more(
    hub: FakeHub, tmp_path: Path, harm: Callable[[FakeHub], object], state: str
) -> None:
    settings: dict[str, Any] = {"hub.stream": True, "hub.allow": [f"{NAMESPACE}/*"]}
    merge = hub_merge(tmp_path, hub, model=large(), account=Account("ada"), **settings)
    assert merge.mergd("pause").code == 0
    with merge.running("run") as daemon:
        merge.push("a", 1)
        eventually(lambda: merge.hub_states() == {"a": "ready"})
        harm(hub)
        assert merge.mergd("resume").code == 0
        eventually(lambda: merge.hub_states() == {"a": state})
        daemon.send(signal.SIGTERM)
        assert daemon.ended().code == 0, daemon.err
    assert merge.versions() == []


# ---------------------------------------------------------------------------------------------------- stops and crashes


@contextmanager
def in_mid_fold(merge: HubMerge) -> Iterator[tuple[Command, Later]]:
    """Give a daemon that folds, and to which the Hub says nothing any more."""
    merge.push("a", 1)
    later = Later(Silence(600), 2)
    silence = merge.hub.fault(WEIGHTS, later, times=None)
    with merge.running("run") as daemon:
        eventually(lambda: later.met > later.first)
        yield daemon, later
    silence.end()


def test_a_stop_waits_for_no_bytes(merge: HubMerge) -> None:
    with in_mid_fold(merge) as (daemon, _):
        daemon.send(signal.SIGTERM)
        assert daemon.ended().code == 0
        assert "Traceback" not in daemon.err
    assert merge.hub_states() == {"a": "ready"}
    assert merge.spooled() == []
    assert merge.once().code == 0
    assert merge.hub_states() == {"a": "folded"}


def test_a_pause_waits_for_no_bytes(merge: HubMerge) -> None:
    with in_mid_fold(merge) as (daemon, later):
        assert merge.mergd("pause").code == 0
        assert merge.hub_states() == {"a": "ready"}
        asked = later.met
        time.sleep(SILENCE + 2)  # until it would have asked again
        assert later.met == asked
        merge.hub.faults[-1].end()
        assert merge.mergd("resume").code == 0
        eventually(lambda: merge.hub_states() == {"a": "folded"})
        daemon.send(signal.SIGTERM)
        assert daemon.ended().code == 0


def test_it_is_folded_once_whenever_it_is_killed(merge: HubMerge) -> None:
    with in_mid_fold(merge) as (daemon, _):
        daemon.send(signal.SIGKILL)
        daemon.ended()
    assert merge.once().code == 0
    assert merge.hub_states() == {"a": "folded"}
    assert len(merge.versions()) == 1
    assert merge.spooled() == []
