"""Checkpoints that lie on the Hub alone are fetched again when a removal, a replay or a re-merge needs them."""

import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fakehub import Account, Before, Drip, FakeHub, Fault, Flipped, Request, Silence, Status, Truncated, too_many
from hub_server.faults import Line
from hub_server.messages import Answer
from safetensors.torch import save
from support.commands import Command, eventually
from support.hub import OF_BASE, TOKEN, HubMerge, files_of, hub_merge
from support.merges import NO_LIMITS, Sandbox, make_merge, set_in
from support.models import save_sharded

from mergd.daemon.tasks import Rest
from mergd.plugins.sources.interface import Later
from mergd.state.history import History

pytestmark = pytest.mark.long

WEIGHTS = "/model.safetensors"
LIMITS = {f"limits.{name}": value for name, value in NO_LIMITS.items()}
FEW = {"keep_last": 1, "keep_within": 0, "keep_daily": 0, "keep_weekly": 0, "keep_slots": 1}


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with FakeHub(keep_alive=True) as hub:
        yield hub


@pytest.fixture
def new(hub: FakeHub, tmp_path: Path) -> Callable[..., HubMerge]:
    def make(names: str = "abcd", **settings: Any) -> HubMerge:
        merge = hub_merge(tmp_path / "hub", hub, **LIMITS | settings)
        for name in names:
            merge.push(name, ord(name))
        assert merge.once().code == 0
        hub.asked.clear()
        hub.requests.clear()
        return merge

    (tmp_path / "hub").mkdir()
    return make


def folder_merge(root: Path, model: Mapping[str, Any], names: str, **settings: Any) -> Sandbox:
    """Return a merge that has folded these out of a folder."""
    merge = make_merge(root, dict(model), limits=NO_LIMITS, **settings)
    for name in names:
        merge.drop(name, ord(name))
        merge.fold_all()
    return merge


def fetched(merge: HubMerge) -> list[str]:
    """Return the repositories of which weights were asked for, in order."""
    names = [asked.split("/")[2] for asked in merge.asked(WEIGHTS)]
    return [name for k, name in enumerate(names) if name != "base" and names[k - 1 : k] != [name]]


def asked_of(daemon: Command, merge: HubMerge, *words: str) -> AbstractContextManager[Command]:
    """Run a command beside the test that asks a daemon, once it listens."""
    eventually(lambda: "watching" in daemon.err)
    return merge.running(*words)


def waiting(merge: HubMerge) -> int:
    with History(merge.store.database) as history:
        return len(history.tasks.waiting())


def same_version(merge: Sandbox, other: Sandbox) -> bool:
    ours, theirs = merge.versions()[-1], other.versions()[-1]
    return (ours.digest, ours.totals, ours.scale) == (theirs.digest, theirs.totals, theirs.scale)


# --------------------------------------------------------------------------------------------------- what is made of them


def test_without_one_in_the_middle_the_bytes_are_those_of_folding_the_others(
    new: Callable[..., HubMerge], tmp_path: Path
) -> None:
    merge = new()
    done = merge.mergd("remove", "acme/b")
    assert done.code == 0, done.err
    assert same_version(merge, folder_merge(tmp_path / "others", merge.model, "acd"))
    assert fetched(merge) == ["c", "d"]
    assert merge.spooled() == []
    assert merge.mergd("verify").code == 0


def test_what_it_takes_is_said_beforehand_and_nobody_is_asked(new: Callable[..., HubMerge]) -> None:
    merge = new()
    each = len(merge.hub.files("acme/c")["model.safetensors"])
    planned = merge.mergd("remove", "acme/b", "-n", "--json").json
    assert 2 * each <= planned["fetch"] <= 2 * each + 10_000
    assert planned["fetch"] == planned["bytes"]
    assert "kB to read, of it" in planned["words"]
    assert merge.hub.asked == []


def test_a_dropped_version_is_there_again(new: Callable[..., HubMerge]) -> None:
    merge = new(**FEW)
    before = merge.versions()[1]
    assert [entry["files"] for entry in merge.log()] == ["kept", "kept", "replayable", "replayable"]
    done = merge.mergd("replay", "v2")
    assert done.code == 0, done.err
    assert fetched(merge) == ["a", "b"]
    again = merge.versions()[1]
    assert again.kept
    assert again.digest == before.digest
    assert merge.spooled() == []


def test_one_lies_on_the_disk_at_a_time(new: Callable[..., HubMerge]) -> None:
    merge = new("abcde", **FEW)
    there: list[set[str]] = []

    def look() -> None:
        there.append({path.split("/")[1] for path in merge.spooled()})

    merge.hub.fault(f"GET .*{WEIGHTS}", Before(look), times=None)
    assert merge.mergd("replay", "v3").code == 0
    assert max(map(len, there)) == 1
    assert len(set().union(*there)) == 3


def test_a_subtraction_fetches_only_what_it_takes_out(new: Callable[..., HubMerge]) -> None:
    merge = new(rule="average")
    assert merge.mergd("remove", "acme/b").code == 0
    assert fetched(merge) == ["b"]
    assert merge.versions()[-1].totals.folded == 3


def test_a_re_merge_has_all_of_them(new: Callable[..., HubMerge], tmp_path: Path) -> None:
    merge = new()
    done = merge.mergd("remerge", "--rule", "average")
    assert done.code == 0, done.err
    assert sorted(fetched(merge)) == ["a", "b", "c", "d"]
    others = folder_merge(tmp_path / "others", merge.model, "abcd", rule="average")
    for name, tensor in others.published().items():
        assert torch.allclose(tensor.float(), merge.published()[name].float(), atol=1e-6)
    assert merge.spooled() == []


def test_an_adapter_is_fetched_with_what_says_how_it_is_meant(new: Callable[..., HubMerge]) -> None:
    merge = new("a")
    merge.push_adapter("adapter")
    merge.push("z", 1)
    assert merge.once().code == 0
    merge.hub.asked.clear()
    assert merge.mergd("remove", "acme/a").code == 0
    assert merge.versions()[-1].totals.folded == 2


def test_the_commit_is_the_one_that_was_folded(new: Callable[..., HubMerge], tmp_path: Path) -> None:
    merge = new()
    merge.push("c", 77)  # held: it is another content at a known place
    assert merge.once().code == 0
    assert merge.mergd("remove", "acme/b").code == 0
    assert same_version(merge, folder_merge(tmp_path / "others", merge.model, "acd"))


def test_verify_replays_what_is_there(new: Callable[..., HubMerge]) -> None:
    merge = new()
    done = merge.mergd("verify", "--replay", "v2")
    assert done.code == 0, done.err
    assert "the same bytes came of it" in done.out
    assert fetched(merge) == ["b"]


def test_what_was_rolled_away_is_folded_again(new: Callable[..., HubMerge]) -> None:
    merge = new("ab")
    digest = merge.versions()[-1].digest
    assert merge.mergd("rollback").code == 0
    done = merge.mergd("fold", "--again", "hf://acme/b")
    assert done.code == 0, done.err
    assert merge.versions()[-1].digest == digest
    assert merge.spooled() == []


def test_a_content_that_is_named_is_not_another_one(new: Callable[..., HubMerge]) -> None:
    merge = new("ab")
    digest = merge.checkpoints()[-1].digest
    assert merge.mergd("rollback").code == 0
    merge.push("b", 77)
    done = merge.mergd("fold", "--again", digest)
    assert done.code == 69
    assert "acme/b is at commit" in done.err
    assert merge.versions()[-1].totals.folded == 2


def test_a_head_without_slots_is_made_whole_before_the_next_fold(new: Callable[..., HubMerge], tmp_path: Path) -> None:
    merge = new(keep_slots=1)
    assert merge.mergd("rollback", "v2").code == 0
    merge.push("e", ord("e"))
    done = merge.once()
    assert done.code == 0, done.err
    assert fetched(merge) == ["e", "a", "b"]
    assert same_version(merge, folder_merge(tmp_path / "others", merge.model, "abe"))


def test_what_is_archived_is_not_fetched(new: Callable[..., HubMerge]) -> None:
    merge = new(**{"archive.full": "1GB"})
    assert merge.mergd("remove", "acme/b", "-n", "--json").json["fetch"] == 0
    assert merge.mergd("remove", "acme/b").code == 0
    assert merge.hub.asked == []


def test_after_a_rebuild_the_commit_is_known_and_how_much_it_is_not(
    new: Callable[..., HubMerge], tmp_path: Path
) -> None:
    merge = new()
    for path in merge.state.glob("mergd.db*"):
        path.unlink()
    assert merge.mergd("rebuild").code == 0
    assert "of it 2 checkpoints of an unknown size from the Hub" in merge.mergd("remove", "acme/b", "-n").out
    assert merge.mergd("remove", "acme/b").code == 0
    assert same_version(merge, folder_merge(tmp_path / "others", merge.model, "acd"))


def test_a_namespace_that_is_not_watched_any_more_is_asked_all_the_same(new: Callable[..., HubMerge]) -> None:
    merge = new(watch=True)
    set_in(merge.config, **{"hub.namespace": '""'})
    assert merge.mergd("remove", "acme/b").code == 0
    assert fetched(merge) == ["c", "d"]
    assert merge.spooled() == []


def test_what_comes_for_a_task_leaves_the_next_version_its_room(tmp_path: Path) -> None:
    merge = folder_merge(tmp_path, {"layer.weight": torch.randn(400, 400)}, "abc", **FEW)
    with merge.loop() as loop:
        fetching = loop._work._remaking.fetching
        assert fetching.keep_free() == 0, "no task was begun"
        loop._work.tasks.add("replay", {"version": "1"}, "a test")
        loop.run(until=loop.idle)
        assert fetching.keep_free() >= loop._work.worker.disk.need > 0
    assert merge.versions()[0].kept


def test_files_that_the_fold_left_are_left_again(new: Callable[..., HubMerge]) -> None:
    merge = new("")
    for name, seed in (("a", 1), ("b", 2)):
        files = files_of(save_sharded(merge.root / f"aside-{name}", merge.fine_tuned(seed)))
        merge.hub.push(
            f"acme/{name}", files | {"consolidated.safetensors": save(merge.fine_tuned(seed))}, tags=[OF_BASE]
        )
    assert merge.once().code == 0
    merge.hub.requests.clear()
    assert merge.mergd("remove", "acme/a", "--exact").code == 0
    asked = [request.range for request in merge.hub.requests if "consolidated" in request.path]
    assert len(asked) == 1, "its header"
    assert "bytes=0-" not in asked
    assert merge.versions()[-1].totals.folded == 1


def test_a_task_rests_longer_each_time_whatever_a_clock_says(tmp_path: Path) -> None:
    merge = folder_merge(tmp_path, {"layer.weight": torch.randn(40, 40)}, "abc", **FEW)
    with merge.loop() as loop:
        tasks = loop._work.tasks
        _, plan = tasks.add("replay", {"version": "1"}, "a test")
        rests = []
        for until in (time.time(), time.time(), time.time() + 400, time.time() + 1e9):
            tasks.give_up(plan.job, Later("it is silent", until))
            ((rest,),) = [tasks._rests.values()]
            rests.append(round(rest.until - time.monotonic(), -1))
        assert rests == [30, 60, 400, 900]
        tasks.give_up(plan.job, Later("room (make room: none)", 0.0, for_room=True))
        assert "make room" in tasks.resting
        assert "Hub" not in tasks.resting


def test_a_task_without_room_does_not_blame_the_hub() -> None:
    error = Later("room (make room: 1 MB is free)", 0.0, for_room=True)
    words = str(Rest("replaying v1", error, time.monotonic() + 30))
    assert "replaying v1: it waits for room (make room: 1 MB is free), and is tried again in 30 s" in words
    assert "the Hub" not in words


# ----------------------------------------------------------------------------------------------------- what is not there


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda hub: hub.delete("acme/c"), "deleted"),
        (lambda hub: hub.push("acme/c", {"config.json": b"{}"}, force=True), "deleted or rewritten"),
    ],
)
def test_what_is_gone_is_said_with_who_can_mend_it(
    new: Callable[..., HubMerge], harm: Callable[[FakeHub], object], said: str
) -> None:
    merge = new()
    kept = merge.hub.files("acme/c")
    harm(merge.hub)
    before = merge.versions()
    done = merge.mergd("remove", "acme/b")
    assert done.code == 69
    assert "the source is gone of acme/c" in done.err
    assert said in done.err
    assert "archive.full" in done.err
    assert (merge.versions(), waiting(merge), merge.spooled()) == (before, 0, [])
    assert merge.mergd("remove", "acme/d").code == 0, "which needs no source that is gone"
    merge.hub.push("acme/e", kept, tags=["base_model:finetune:acme/base"])
    merge.once()
    assert merge.hub_states()["e"] == "folded", "the same content, under another name"
    assert merge.mergd("remove", "acme/b").code == 0
    assert fetched(merge)[-1] == "e"


def test_a_gated_one_wants_access(new: Callable[..., HubMerge]) -> None:
    merge = new(**{"hub.allow": ["acme/*"]})
    merge.hub.tokens[TOKEN] = Account("eve")
    merge.hub.repositories["acme/c"].gated = True
    done = merge.mergd("remove", "acme/b")
    assert done.code == 77
    assert "acme/c is gated" in done.err
    assert "ask for access" in done.err
    assert len(merge.versions()) == 4
    merge.hub.repositories["acme/c"].granted.add("eve")
    assert merge.mergd("remove", "acme/b").code == 0


def test_where_the_checkpoint_itself_is_gone_it_is_taken_out_by_folding_the_others(
    new: Callable[..., HubMerge], tmp_path: Path
) -> None:
    merge = new(rule="average")
    merge.hub.delete("acme/b")
    done = merge.mergd("remove", "acme/b")
    assert done.code == 0, done.err
    assert same_version(merge, folder_merge(tmp_path / "others", merge.model, "acd", rule="average"))


def test_a_re_merge_goes_without_what_is_gone_and_says_so(new: Callable[..., HubMerge]) -> None:
    merge = new()
    merge.hub.delete("acme/b")
    done = merge.mergd("remerge", "--rule", "average")
    assert done.code == 0, done.err
    assert "left out, because their sources are gone: acme/b" in done.out
    assert merge.versions()[-1].totals.folded == 3


def test_another_content_at_the_same_commit_is_not_folded(new: Callable[..., HubMerge]) -> None:
    """A Hub that lies as well about its digests: ours decides."""
    merge = new()
    other = merge.hub.push("acme/other", merge.hub.files("acme/a"), tags=[])
    repository = merge.hub.repositories["acme/c"]
    repository.commits[repository.branches["main"]] = merge.hub.repositories["acme/other"].commits[other]
    done = merge.mergd("remove", "acme/b")
    assert done.code == 75
    assert "the source of acme/c holds other content now" in done.err
    assert len(merge.versions()) == 4


# --------------------------------------------------------------------------------------------------------------- a bad Hub


def test_a_connection_that_breaks_is_taken_up_where_it_broke(new: Callable[..., HubMerge]) -> None:
    merge = new("abc", model={"layer.weight": torch.randn(400, 400)}, **FEW)
    merge.hub.fault(f"GET .*{WEIGHTS}", Truncated(150_000), times=3)
    assert merge.mergd("replay", "v1").code == 0
    starts = [int((request.range or "=0-").split("=")[1].split("-")[0]) for request in merge.hub.requests]
    assert any(start > 0 for start in starts)
    assert merge.spooled() == []


def test_what_has_come_of_the_first_step_is_kept_over_an_outage(new: Callable[..., HubMerge]) -> None:
    merge = new("abc", model={"layer.weight": torch.randn(400, 400)}, **FEW)
    merge.hub.fault(f"GET .*/a/.*{WEIGHTS}", OutageAfter(150_000), times=None)
    done = merge.mergd("replay", "v1")
    assert done.code == 0, done.err
    starts = [request.range for request in merge.hub.requests if "/a/" in request.path and WEIGHTS in request.path]
    assert starts.count("bytes=0-") == 1, starts
    assert starts[-1] != "bytes=0-"


@dataclass
class OutageAfter(Fault):
    """The first download breaks off, and the Hub wants to be left alone for longer than a first step waits."""

    nbytes: int
    asked: int = 0

    def answer(self, line: Line, request: Request, serve: Callable[[], Answer]) -> Answer:
        self.asked += request.range != "bytes=0-99999"
        return replace(serve(), status=503, headers={"Retry-After": "6"}, body=b"") if self.asked == 2 else serve()

    def write(self, line: Line, body: bytes) -> None:
        line.write(body[: self.nbytes] if self.asked == 1 else body)
        if self.asked == 1:
            line.cut()


@pytest.mark.parametrize("fault", [too_many(60), Flipped(at=-1)])
def test_a_hub_that_does_not_give_it_now_lets_the_task_wait(new: Callable[..., HubMerge], fault: Any) -> None:
    merge = new("abc", **FEW)
    found = merge.hub.fault(f"GET .*/a/.*{WEIGHTS}", fault, times=None)
    done = merge.mergd("replay", "v1")
    assert done.code == 69
    assert "it waits for the Hub" in done.err
    assert "it is written down" in done.err
    assert waiting(merge) == 1
    assert merge.spooled() == []
    found.end()
    assert merge.once().code == 0
    assert merge.versions()[0].kept
    assert waiting(merge) == 0


def test_a_head_without_slots_waits_for_the_hub_and_says_so(new: Callable[..., HubMerge]) -> None:
    merge = new(keep_slots=1)
    assert merge.mergd("rollback", "v2").code == 0
    merge.push("e", ord("e"))
    found = merge.hub.fault(f"GET .*/a/.*{WEIGHTS}", too_many(600), times=None)
    done = merge.once()
    assert done.code == 69
    assert "the slots of v2 were dropped, and replaying v2: it waits for the Hub" in done.err
    assert found.met == 1
    found.end()
    assert merge.once().code == 0
    assert merge.versions()[-1].totals.folded == 3


def test_a_daemon_goes_on_meanwhile(new: Callable[..., HubMerge]) -> None:
    merge = new("abc", watch=True, **FEW)
    found = merge.hub.fault(f"GET .*/a/.*{WEIGHTS}", Status(503, {"Retry-After": "600"}), times=None)
    with merge.running("run") as daemon:
        eventually(lambda: "watching" in daemon.err)
        assert merge.mergd("replay", "v1").code == 69
        eventually(lambda: "replaying v1: it waits for the Hub" in merge.status()["doing"])
        merge.drop("local", 1)
        eventually(lambda: merge.states().get("local") == "folded")
        assert found.met == 1
        daemon.send(signal.SIGTERM)
        assert daemon.ended().code == 0, daemon.err
    assert waiting(merge) == 1


def test_what_asks_a_task_to_wait_asks_the_watching_too(new: Callable[..., HubMerge]) -> None:
    merge = new("abc", **FEW, **{"hub.poll": "1s"})
    merge.hub.fault(f"GET .*/a/.*{WEIGHTS}", too_many(600), times=None)
    with merge.running("run") as daemon:
        eventually(lambda: "watching" in daemon.err)
        assert merge.mergd("replay", "v1").code == 69
        eventually(lambda: "the Hub is left alone" in merge.status()["sources"])
        asked = len(merge.hub.requests)
        time.sleep(3)  # some polls
        assert len(merge.hub.requests) == asked
        daemon.send(signal.SIGTERM)
        assert daemon.ended().code == 0, daemon.err


def test_how_far_a_download_is_and_requests_do_not_wait_for_it(new: Callable[..., HubMerge]) -> None:
    merge = new("abc", model={"layer.weight": torch.randn(400, 400)}, **FEW)
    slow = merge.hub.fault(f"GET .*/a/.*{WEIGHTS}", Drip(0.2, 20_000), times=None)
    with merge.running("run") as daemon, asked_of(daemon, merge, "replay", "v1") as asking:
        eventually(lambda: "replaying v1: its download: " in merge.status().get("doing", ""))
        assert " of 640." in merge.status()["doing"]
        assert merge.mergd("pause").code == 0
        slow.end()
        assert asking.ended().code == 0
        daemon.send(signal.SIGTERM)
        assert daemon.ended().code == 0, daemon.err
    assert merge.versions()[0].kept
    assert merge.spooled() == []


@pytest.mark.parametrize("pattern", [f"GET .*/c/.*{WEIGHTS}", f"GET .*/d/.*{WEIGHTS}", "GET /api/models/acme/c/rev"])
def test_it_is_finished_whenever_it_is_killed(new: Callable[..., HubMerge], tmp_path: Path, pattern: str) -> None:
    merge = new()
    slow = merge.hub.fault(pattern, Silence(2.0), times=None)
    with merge.running("remove", "acme/b") as asking:
        eventually(lambda: slow.met)
        asking.send(signal.SIGKILL)
        asking.ended()
    slow.end()
    assert waiting(merge) == 1
    assert merge.once().code == 0
    assert waiting(merge) == 0
    assert same_version(merge, folder_merge(tmp_path / "others", merge.model, "acd"))
    assert merge.spooled() == []


def test_a_stop_waits_for_no_download(new: Callable[..., HubMerge]) -> None:
    merge = new("abc", model={"layer.weight": torch.randn(400, 400)}, **FEW)
    slow = merge.hub.fault(f"GET .*/a/.*{WEIGHTS}", Drip(1.0, 2_000), times=None)
    with merge.running("run") as daemon, asked_of(daemon, merge, "replay", "v1") as asking:
        eventually(lambda: slow.met)
        daemon.send(signal.SIGTERM)
        assert daemon.ended().code == 0, daemon.err
        assert asking.ended().code != 0
    assert waiting(merge) == 1
    assert merge.spooled() == []
