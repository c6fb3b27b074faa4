"""A namespace of the Hub is watched: the real client, the real commands, a Hub on the loopback that may do anything."""

import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fakehub import Account, Before, Drip, FakeHub, Fault, Flipped, Request, Silence, Status, Truncated, too_many
from hub_server.faults import Line
from hub_server.messages import Answer
from support.commands import eventually
from support.hub import NAMESPACE, OF_BASE, TOKEN, HubMerge, hub_merge, stop
from support.merges import make_merge
from support.models import load_model

pytestmark = pytest.mark.long

WEIGHTS = "/model.safetensors"


class Short(Fault):
    """An answer that says that it is whole, and has nothing in it but the header's part."""

    def answer(self, line: Line, request: Request, serve: Callable[[], Answer]) -> Answer:
        right = serve()
        return right if (request.range or "").endswith("99") else replace(right, body=right.body[:50])


@pytest.fixture
def merge(on_hub: Callable[..., HubMerge]) -> HubMerge:
    return on_hub()


# ------------------------------------------------------------------------------------------------- what is folded, and how


def test_each_is_folded_once_the_oldest_first_as_if_it_had_been_dropped(merge: HubMerge, tmp_path: Path) -> None:
    for seed, name in enumerate(("zeta", "alpha", "mid")):
        merge.push(name, seed)
    merge.push_adapter("adapter")
    assert merge.once().code == 0
    assert [entry["checkpoint"]["name"] for entry in reversed(merge.log())] == [
        f"{NAMESPACE}/{name}" for name in ("zeta", "alpha", "mid", "adapter")
    ]
    dropped = make_merge(tmp_path / "dropped", merge.model)
    for seed, name in enumerate(("zeta", "alpha", "mid")):
        dropped.drop(name, seed)
        dropped.fold_all()
    for name, tensor in load_model(dropped.store.current).items():
        assert torch.equal(tensor, merge.published(3)[name])
    assert merge.spooled() == []
    before = len(merge.versions())
    assert merge.once().code == 0
    assert len(merge.versions()) == before


def test_a_running_daemon_finds_what_is_pushed_and_asks_no_more_than_one_listing_a_poll(merge: HubMerge) -> None:
    with merge.running("run") as daemon:
        eventually(lambda: merge.asked("GET /api/models"))
        merge.push("a", 1)
        eventually(lambda: merge.hub_states() == {"a": "folded"})
        eventually(lambda: not merge.spooled())
        merge.hub.asked.clear()
        began = time.monotonic()
        eventually(lambda: len(merge.hub.asked) >= 3)
        polls = time.monotonic() - began + 1.2  # one may have been due
        assert len(merge.hub.asked) <= polls / 0.9
        assert set(merge.hub.asked) == {"GET /api/models"}
        stop(daemon)


def test_the_wrong_architecture_costs_its_headers(merge: HubMerge) -> None:
    merge.push("wrong", {"other.weight": torch.zeros(1000, 1000)})
    assert merge.once().code == 0
    (row,) = merge.checkpoints()
    assert (row.state, row.reasons[0].code) == ("refused", "missing-weights")
    ranges = [
        request.range or "all" for request in merge.hub.requests if WEIGHTS in request.path and "wrong" in request.path
    ]
    assert ranges == ["bytes=0-99999"] * 2, "before it is refused for good, once more"
    assert merge.spooled() == []


def test_sharded_weights_come_whole(merge: HubMerge, tmp_path: Path) -> None:
    from support.hub import files_of
    from support.models import save_sharded

    files = files_of(save_sharded(tmp_path / "sharded", merge.fine_tuned(1)))
    merge.hub.push(f"{NAMESPACE}/sharded", files, tags=[OF_BASE])
    merge.push("plain", 1)
    assert merge.once().code == 0
    assert merge.hub_states() == {"sharded": "folded", "plain": "folded"}
    assert len(merge.versions()) == 1, "another sharding of the same weights is the same checkpoint"


def test_the_card_says_what_may_be_a_checkpoint(merge: HubMerge) -> None:
    for seed, relation in enumerate(("finetune", "quantized", "merge")):
        merge.push(relation, seed, tags=[f"base_model:{relation}:acme/base", "base_model:acme/base"])
    merge.push("unrelated", 3, tags=[])
    assert merge.once().code == 0
    assert merge.hub_states() == {"finetune": "folded"}
    assert {asked.split("/")[2] for asked in merge.asked(WEIGHTS)} == {"finetune"}


def test_patterns_allow_and_deny(on_hub: Callable[..., HubMerge]) -> None:
    merge = on_hub(**{"hub.allow": ["acme/good-*", "acme/b"], "hub.deny": ["*-bad"]})
    for seed, name in enumerate(("good-1", "good-bad", "b", "c")):
        merge.push(name, seed)
    assert merge.once().code == 0
    assert merge.hub_states() == {"good-1": "folded", "b": "folded"}


def test_a_namespace_that_is_not_the_tokens_needs_an_allow_list(on_hub: Callable[..., HubMerge]) -> None:
    merge = on_hub()
    merge.hub.tokens[TOKEN] = Account("eve")
    merge.push("a", 1)
    done = merge.once()
    assert done.code == 69
    assert "hub.allow" in done.err
    assert merge.hub_states() == {}


def test_an_init_that_may_not_look_leaves_nothing(hub: FakeHub, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"hub\.allow"):
        hub_merge(tmp_path, hub, account=Account("eve"))
    assert not (tmp_path / "state").exists()
    assert not (tmp_path / "mergd.toml").exists()


def test_a_private_repository_is_read_with_the_token(merge: HubMerge) -> None:
    merge.push("private", 1, private=True)
    assert merge.once().code == 0
    assert merge.hub_states() == {"private": "folded"}


def test_a_gated_repository_waits_for_access(on_hub: Callable[..., HubMerge]) -> None:
    merge = on_hub(**{"hub.allow": ["acme/*"]})
    merge.hub.tokens[TOKEN] = Account("eve")
    merge.push("gated", 1, gated=True)
    assert merge.once().code == 0
    assert merge.hub_states() == {"gated": "blocked"}
    assert "is gated" in merge.checkpoints()[0].reasons[0].found
    merge.hub.repositories[f"{NAMESPACE}/gated"].granted.add("eve")
    assert merge.once().code == 0
    assert merge.hub_states() == {"gated": "folded"}


# -------------------------------------------------------------------------------------------------------------- new commits


@pytest.mark.parametrize(
    ("on_change", "folded", "states"),
    [
        ("hold", 1, ["folded", "held"]),
        ("add", 2, ["folded", "folded"]),
        ("replace", 1, ["folded", "folded"]),
        ("ignore", 1, ["folded", "refused"]),
    ],
)
def test_a_new_commit_of_what_was_folded(
    on_hub: Callable[..., HubMerge], on_change: str, folded: int, states: list[str]
) -> None:
    merge = on_hub(on_change=on_change)
    merge.push("a", 1)
    assert merge.once().code == 0
    merge.push("a", 2)
    assert merge.once().code == 0
    assert [row.state for row in merge.checkpoints()] == states
    assert merge.versions()[-1].totals.folded == folded


def test_where_each_commit_replaces_the_one_before_an_earlier_content_may_come_back(
    on_hub: Callable[..., HubMerge],
) -> None:
    merge = on_hub(on_change="replace")
    published = []
    for seed in (1, 2, 1):
        merge.push("a", seed)
        assert merge.once().code == 0
        published.append(merge.published()["layer.matrix.weight"])
    assert not torch.equal(published[0], published[1])
    assert torch.equal(published[0], published[2])


def test_a_commit_that_changes_no_weight_fetches_none(merge: HubMerge) -> None:
    merge.push("a", 1)
    assert merge.once().code == 0
    merge.hub.asked.clear()
    merge.push("a", 1, {"README.md": b"what it is"})
    merge.hub.requests.clear()
    assert merge.once().code == 0
    fetched = [request.range for request in merge.hub.requests if WEIGHTS in request.path]
    assert all(span and span.startswith("bytes=0-") and len(span) > len("bytes=0-") for span in fetched), (
        "headers alone"
    )
    assert [row.reasons[0].code for row in merge.checkpoints()[1:]] == ["known-content"]
    assert len(merge.versions()) == 1


def test_what_was_replaced_renamed_or_deleted_is_recorded(merge: HubMerge) -> None:
    merge.push("a", 1)
    merge.push("b", 2, gated=True)
    merge.hub.repositories[f"{NAMESPACE}/b"].granted.clear()
    assert merge.once().code == 0
    merge.push("a", 1, force=True, title="rewritten")
    merge.hub.rename(f"{NAMESPACE}/a", f"{NAMESPACE}/c")
    merge.hub.delete(f"{NAMESPACE}/b")
    assert merge.once().code == 0
    assert len(merge.versions()) == 2
    assert merge.hub_states()["c"] == "folded", "the same content under another name"


# ------------------------------------------------------------------------------------------------------------- a bad Hub


def test_a_connection_that_breaks_is_taken_up_where_it_broke(on_hub: Callable[..., HubMerge]) -> None:
    merge = on_hub(model={"layer.weight": torch.randn(400, 400)})
    merge.push("a", 1)
    merge.hub.requests.clear()
    merge.hub.fault(f"GET .*{WEIGHTS}", Truncated(150_000), times=3)
    assert merge.once().code == 0
    assert merge.hub_states() == {"a": "folded"}
    starts = [
        int(request.range.split("=")[1].split("-")[0])
        for request in merge.hub.requests
        if request.range and WEIGHTS in request.path
    ]
    assert any(start > 0 for start in starts)


def test_a_flipped_byte_is_never_folded(merge: HubMerge) -> None:
    merge.push("a", 1)
    merge.push("b", 2)
    flipped = merge.hub.fault(rf"GET .*/a/.*{WEIGHTS}", Flipped(at=-1), times=None)
    done = merge.once()
    assert done.code == 69
    assert "other bytes" in done.err
    assert merge.hub_states() == {"a": "settling", "b": "folded"}, "one that fails keeps no other one waiting"
    flipped.end()
    assert merge.once().code == 0
    assert merge.hub_states() == {"a": "folded", "b": "folded"}


def test_a_flipped_byte_of_what_says_how_weights_are_meant_is_never_folded(merge: HubMerge) -> None:
    merge.push_adapter("a")
    merge.hub.fault(r"GET .*/adapter_config.json", Flipped(at=-2), times=None)
    assert merge.once().code == 69
    assert merge.versions() == []


def test_a_body_that_is_too_short_is_no_end(merge: HubMerge) -> None:
    merge.push("a", 1)
    found = merge.hub.fault(rf"GET .*{WEIGHTS}", Short(), times=None)
    assert merge.once().code == 69
    assert merge.hub_states() == {"a": "settling"}
    assert found.met < 20


def test_a_new_commit_while_the_old_one_comes_is_the_one_that_is_folded(on_hub: Callable[..., HubMerge]) -> None:
    merge = on_hub(model={"layer.weight": torch.randn(400, 400)})
    merge.push("a", 1)
    merge.push("b", 3)
    slow = merge.hub.fault(rf"GET .*/a/.*{WEIGHTS}", Drip(0.05, 20_000), times=None)
    with merge.running("run") as daemon:
        eventually(lambda: slow.met >= 2)
        merge.push("a", 2)
        eventually(lambda: [asked for asked in merge.asked("/revision/") if "/acme/a/" in asked][1:])
        slow.end()
        eventually(lambda: merge.hub_states() == {"a": "folded", "b": "folded"})
        stop(daemon)
    second = merge.fine_tuned(2)["layer.weight"]
    vectors = {row.name: row.digest for row in merge.checkpoints()}
    assert len(merge.versions()) == 2
    dropped = make_merge(merge.root / "dropped", merge.model)
    dropped.drop("a", {"layer.weight": second})
    assert [row.digest for row in dropped.fold_all()] == [vectors["acme/a"]]


def test_a_command_that_asks_for_what_the_hub_does_not_give_says_so(merge: HubMerge) -> None:
    merge.push("a", 1)
    merge.hub.fault(rf"GET .*{WEIGHTS}", Status(503), times=None)
    assert merge.once().code == 69
    done = merge.mergd("fold", "hf://acme/a")
    assert done.code == 69
    assert "acme/a waits for" in done.err


def test_what_is_deleted_while_it_comes_has_vanished(merge: HubMerge) -> None:
    merge.push("a", 1)
    merge.hub.fault(rf"GET .*{WEIGHTS}", Before(lambda: merge.hub.delete(f"{NAMESPACE}/a")))
    assert merge.once().code == 0
    assert merge.hub_states() == {"a": "vanished"}


@pytest.mark.parametrize("fault", [Status(503), Status(500), too_many(60), Status(429, {"Retry-After": "7"})])
def test_a_hub_with_trouble_is_left_alone_and_keeps_no_folder_waiting(
    on_hub: Callable[..., HubMerge], fault: Status
) -> None:
    merge = on_hub(watch=True)
    found = merge.hub.fault("GET /api/models", fault, times=None)
    with merge.running("run") as daemon:
        eventually(lambda: found.met)
        merge.drop("local", 1)
        eventually(lambda: merge.states() == {"local": "folded"})
        assert str(fault.status) in merge.status()["sources"]
        assert merge.status()["trouble"] == "", "the daemon does not stand still"
        assert "is folded all the same" in merge.mergd("status").out
        stop(daemon)
    assert found.met <= 2


def test_a_silent_hub_keeps_no_folder_and_no_command_waiting(on_hub: Callable[..., HubMerge]) -> None:
    merge = on_hub(watch=True)
    silence = merge.hub.fault("", Silence(600), times=None)
    with merge.running("run") as daemon:
        eventually(lambda: silence.met)
        merge.drop("local", 1)
        eventually(lambda: merge.states() == {"local": "folded"})
        assert merge.mergd("pause").code == 0
        eventually(lambda: merge.status()["sources"])
        stop(daemon)


def test_without_a_network_it_says_so(on_hub: Callable[..., HubMerge]) -> None:
    merge = on_hub()
    with merge.running("run", HF_HUB_OFFLINE="1") as daemon:
        eventually(lambda: "offline" in merge.status()["sources"])
        stop(daemon)


# ----------------------------------------------------------------------------------------------------- crashes and secrets


@pytest.mark.parametrize(
    "pattern", [r"GET .*/model.safetensors", r"GET /api/models/acme/a/revision", r"GET /api/models$"]
)
def test_it_is_folded_once_whenever_it_is_killed(merge: HubMerge, pattern: str) -> None:
    for seed, name in enumerate(("a", "b")):
        merge.push(name, seed)
    slow = merge.hub.fault(pattern, Silence(1.0), times=None)
    with merge.running("run") as daemon:
        eventually(lambda: slow.met)
        daemon.send(signal.SIGKILL)
        daemon.ended()
    slow.end()
    assert merge.once().code == 0
    assert merge.hub_states() == {"a": "folded", "b": "folded"}
    assert len(merge.versions()) == 2
    assert merge.spooled() == []


def test_the_token_is_nowhere(merge: HubMerge) -> None:
    merge.push("a", 1)
    merge.push("wrong", {"other.weight": torch.zeros(3)})
    merge.hub.fault(r"GET .*/acme/gone", Status(403), times=None)
    outputs = [merge.once() for _ in range(2)]
    outputs += [
        merge.mergd(*words) for words in (("list",), ("status",), ("log",), ("show", "1"), ("fold", "acme/none"))
    ]
    merge.hub.broken = "."
    outputs.append(merge.once())
    for output in outputs:
        assert TOKEN not in output.out + output.err
    for path in merge.root.rglob("*"):
        if path.is_file() and not path.is_relative_to(merge.root / "hf"):
            assert TOKEN.encode() not in path.read_bytes(), path
