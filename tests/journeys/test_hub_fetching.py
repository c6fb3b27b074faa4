"""What is fetched of a repository on the Hub, in which order, and what is refused before it is: real client, real commands."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from fakehub import Drip, Flipped, Status
from support.commands import eventually
from support.hub import NAMESPACE, OF_BASE, HubMerge, files_of, stop
from support.merges import make_merge, set_in
from support.models import save_sharded

from mergd.state.store import BALLAST

pytestmark = pytest.mark.long

WEIGHTS = "model.safetensors"
HEADERS = "bytes=0-99999"
LARGE = {"layer.weight": torch.randn(400, 400)}


@pytest.fixture
def merge(on_hub: Callable[..., HubMerge]) -> HubMerge:
    return on_hub()


def fetched(merge: HubMerge, repo: str, file: str = WEIGHTS) -> list[str]:
    """Return the ranges that were asked for of a file."""
    path = f"/{NAMESPACE}/{repo}/resolve/"
    return [r.range or "all" for r in merge.hub.requests if r.path.startswith(path) and r.path.endswith(f"/{file}")]


def codes(merge: HubMerge) -> dict[str, list[str]]:
    """Return why each repository was turned away."""
    return {
        row.name.removeprefix(f"{NAMESPACE}/"): [reason.code for reason in row.reasons] for row in merge.checkpoints()
    }


# ------------------------------------------------------------------------------------------------------------ refusals


def test_a_flipped_byte_in_a_header_refuses_nothing_for_good(merge: HubMerge) -> None:
    merge.push("a", 1)
    merge.hub.fault(f"GET .*/{WEIGHTS}", Flipped(at=20), times=1)
    done = merge.once()
    assert (done.code, merge.hub_states()) == (69, {"a": "settling"})
    assert "twice with the same bytes" in done.err
    assert merge.once().code == 0
    assert merge.hub_states() == {"a": "folded"}


def test_a_repository_of_pickles_is_refused_until_a_commit_has_weights(merge: HubMerge) -> None:
    merge.hub.push(f"{NAMESPACE}/a", {"pytorch_model.bin": b"never read", "config.json": b"{}"}, tags=[OF_BASE])
    assert merge.once().code == 0
    assert codes(merge) == {"a": ["pickle"]}
    assert not merge.asked("pytorch_model.bin")
    merge.push("a", 1)
    assert merge.once().code == 0
    assert merge.hub_states() == {"a": "folded"}


def test_a_commit_without_one_of_its_shards_is_refused_until_one_has_it(merge: HubMerge, tmp_path: Path) -> None:
    files = files_of(save_sharded(tmp_path / "sharded", merge.fine_tuned(1)))
    shard = next(name for name in files if "-of-" in name)
    merge.hub.push(f"{NAMESPACE}/a", {k: v for k, v in files.items() if k != shard}, tags=[OF_BASE])
    assert merge.once().code == 0
    (row,) = merge.checkpoints()
    assert (row.state, row.reasons[0].code) == ("refused", "incomplete")
    assert shard in row.reasons[0].found
    merge.hub.push(f"{NAMESPACE}/a", files, tags=[OF_BASE])
    assert merge.once().code == 0
    assert merge.hub_states() == {"a": "folded"}


def test_more_files_than_a_checkpoint_has_are_refused_without_a_look_at_them(merge: HubMerge) -> None:
    merge.hub.push(f"{NAMESPACE}/a", {f"{k}.safetensors": b"" for k in range(1001)}, tags=[OF_BASE])
    assert merge.once().code == 0
    assert codes(merge) == {"a": ["too-large"]}
    assert not merge.asked("/resolve/")


# -------------------------------------------------------------------------------------------------------- what is fetched


def test_only_the_files_that_are_read_are_fetched(on_hub: Callable[..., HubMerge]) -> None:
    merge = on_hub(model=LARGE)
    merge.push("a", 1, {"consolidated.safetensors": merge.hub.files("acme/base")[WEIGHTS]})
    assert merge.once().code == 0
    assert merge.hub_states() == {"a": "folded"}
    assert fetched(merge, "a", "consolidated.safetensors") == [HEADERS]


@pytest.mark.parametrize(("on_change", "state"), [("hold", "held"), ("ignore", "refused")])
def test_other_weights_of_a_known_repository_are_not_fetched_before_a_person_wants_them(
    on_hub: Callable[..., HubMerge], on_change: str, state: str
) -> None:
    merge = on_hub(on_change=on_change, model=LARGE)
    merge.push("a", 1)
    assert merge.once().code == 0
    merge.push("a", 2)
    merge.hub.requests.clear()
    assert merge.once().code == 0
    assert (merge.hub_states(), codes(merge)) == ({"a": state}, {"a": ["changed"]})
    assert fetched(merge, "a") == [HEADERS]
    assert merge.spooled() == []
    assert merge.mergd(*(("approve", "acme/a") if on_change == "hold" else ("fold", "hf://acme/a"))).code == 0
    assert merge.once().code == 0
    assert merge.hub_states() == {"a": "folded"}
    assert merge.versions()[-1].totals.folded == 2


# ------------------------------------------------------------------------------------------------------------- which first


def test_what_a_person_asks_for_is_fetched_first_and_what_had_begun_goes_on_after_it(
    on_hub: Callable[..., HubMerge],
) -> None:
    merge = on_hub(model=LARGE)
    for seed, name in enumerate(("a", "b", "c")):
        merge.push(name, seed)
    slow = merge.hub.fault(f"GET .*/a/.*/{WEIGHTS}", Drip(0.3, 20_000), times=None)
    with merge.running("run") as daemon:
        eventually(lambda: slow.met >= 2 and "c" in merge.hub_states())
        assert merge.mergd("fold", "hf://acme/c").code == 0
        assert merge.hub_states() == {"a": "settling", "b": "settling", "c": "folded"}
        slow.end()
        eventually(lambda: set(merge.hub_states().values()) == {"folded"})
        stop(daemon)
    assert fetched(merge, "a")[-1] not in (HEADERS, "bytes=0-"), "it was taken up where it was left"


@pytest.mark.parametrize(
    ("fault", "others"), [(Status(429, {"Retry-After": "60"}), {}), (Status(503), {"b": "folded"})]
)
def test_who_is_told_to_wait_waits_for_all(merge: HubMerge, fault: Status, others: dict[str, str]) -> None:
    merge.push("a", 1)
    merge.push("b", 2)
    merge.hub.fault("GET /api/models/acme/a/revision", fault, times=None)
    done = merge.once()
    assert done.code == 69
    assert str(fault.status) in done.err
    assert merge.hub_states() == {"a": "settling", "b": "settling"} | others
    assert bool(merge.asked("/api/models/acme/b")) == bool(others)
    merge.hub.asked.clear()
    assert merge.once().code == 69
    assert bool(merge.asked()) == bool(others), "also over a restart, and listings too"


def test_what_a_person_asked_for_is_still_asked_for_after_a_restart(on_hub: Callable[..., HubMerge]) -> None:
    merge = on_hub(on_change="hold")
    for seed in (1, 2):
        merge.push("a", seed)
        assert merge.once().code == 0
    assert merge.hub_states() == {"a": "held"}
    trouble = merge.hub.fault(f"GET .*{WEIGHTS}", Status(503), times=None)
    with merge.running("run") as daemon:
        eventually(lambda: merge.status().get("daemon"))
        eventually(lambda: merge.mergd("fold", "hf://acme/a").code == 69)  # once it is listed
        assert merge.mergd("pause").code == 0
        trouble.end()
        eventually(lambda: merge.hub_states() == {"a": "ready"}, patience=200)  # it rests for a random time
        stop(daemon)
    assert merge.mergd("resume").code == 0
    assert merge.once().code == 0
    assert merge.hub_states() == {"a": "folded"}


# ---------------------------------------------------------------------------------------------------------------- room


def test_a_download_leaves_the_next_version_its_room(on_hub: Callable[..., HubMerge], tmp_path: Path) -> None:
    with make_merge(tmp_path / "alike", LARGE).loop() as loop:
        loop._work.worker.room()
        need = loop._work.worker.disk.need
    merge = on_hub(model=LARGE, watch=True)
    used = merge.mergd("status", "--json").json["disk"]["used"]
    set_in(merge.config, disk=str(used + BALLAST + need + 300_000))
    merge.push("a", 1)
    merge.drop("local", 2)
    done = merge.once()
    assert done.code == 69
    assert "make room: " in done.err
    assert merge.states() == {"acme/a": "settling", "local": "folded"}, done.err
    assert fetched(merge, "a") == [HEADERS]
    set_in(merge.config, disk="0")
    assert merge.once().code == 0
    assert merge.hub_states()["a"] == "folded"


def test_what_no_room_can_ever_be_made_for_says_so(on_hub: Callable[..., HubMerge]) -> None:
    merge = on_hub(model=LARGE, disk=700_000)
    merge.push("a", 1)
    done = merge.once()
    assert done.code == 69
    assert "there can never be more than" in done.err


# ----------------------------------------------------------------------------------------------------- a Hub with trouble


def test_a_hub_with_trouble_does_not_keep_what_is_here_from_being_prepared(on_hub: Callable[..., HubMerge]) -> None:
    merge = on_hub(watch=True)
    merge.hub.fault("GET /api/models", Status(503), times=None)
    merge.drop("local", 1)
    with merge.running("run") as daemon:
        eventually(lambda: merge.status().get("prepared"))
        eventually(lambda: "503" in merge.status()["sources"])
        stop(daemon)
    merge.drop("another", 2)
    assert merge.once().code == 69, "not all that there is was seen"
    assert merge.states() == {"local": "folded", "another": "folded"}
