"""Recovery: what a crash may leave behind, step by step, is made good; and who is to blame for attempts without a verdict."""

import os
from collections.abc import Iterator

import pytest
from support.merges import Sandbox, writable

from mergd.daemon.recovery import check_head, recover, wait_again
from mergd.state.committing import Commit
from mergd.state.errors import Damaged
from mergd.state.history import History


@pytest.fixture
def history(merge: Sandbox) -> Iterator[History]:
    """The history of three versions; nobody else writes it."""
    for name, seed in (("a", 1), ("b", 2), ("c", 3)):
        merge.drop(name, seed)
    merge.fold_all()
    with History(merge.store.database, write=True) as history:
        yield history


def test_recovery_may_be_done_again_and_again(merge: Sandbox, history: History) -> None:
    before = {version: merge.weight_files(version) for version in (1, 2, 3)}
    for _ in range(2):
        recover(Commit(merge.store, history), history)
    assert {version: merge.weight_files(version) for version in (1, 2, 3)} == before
    assert os.readlink(merge.store.current) == "000003"


def test_a_crash_before_the_commit_leaves_folders_that_are_swept(merge: Sandbox, history: History) -> None:
    draft = merge.store.draft(4)
    (draft.slots / "slots-00001.safetensors").write_bytes(b"half")
    for folder in ("versions", "models"):
        (merge.state / folder / "000004").mkdir()
    recover(Commit(merge.store, history), history)
    assert not list((merge.state / "drafts").iterdir())
    assert sorted(os.listdir(merge.state / "versions")) == ["000001", "000002", "000003"]
    assert sorted(os.listdir(merge.state / "models")) == ["000001", "000002", "000003", "current"]


def test_a_crash_after_the_commit_leaves_a_link_that_is_set_from_the_head(merge: Sandbox, history: History) -> None:
    merge.store.point(2)
    recover(Commit(merge.store, history), history)
    assert os.readlink(merge.store.current) == "000003"
    merge.store.current.unlink()
    recover(Commit(merge.store, history), history)
    assert os.readlink(merge.store.current) == "000003"


def test_a_crash_in_the_middle_of_retention_leaves_no_files_for_ever(merge: Sandbox, history: History) -> None:
    history.drop_files(1, "model")  # the promise was withdrawn, and then the power failed
    history.drop_files(1, "slots")
    recover(Commit(merge.store, history), history)
    assert not merge.store.model(1).exists()
    assert os.listdir(merge.state / "versions" / "000001") == ["manifest.json"]
    assert merge.store.whole(3)


@pytest.mark.parametrize(
    ("outcomes", "state"),
    [
        ([None], "ready"),
        ([None, None], "ready"),
        ([None, None, None], "held"),
        (["error: x", None, "error: y"], "held"),
        ([None, "abandoned", None, "changed", None], "held"),
        (["abandoned"] * 9, "ready"),
        (["changed"] * 9, "ready"),
        ([None, None, "refused", None], "ready"),
        ([None, None, "folded", None, None], "ready"),
    ],
)
def test_a_checkpoint_is_held_after_three_attempts_in_a_row_without_a_verdict(
    merge: Sandbox, history: History, outcomes: list[str | None], state: str
) -> None:
    row = next(row for row in history.checkpoints.all() if row.name == "b")
    for outcome in ["refused", *outcomes]:
        attempt = history.checkpoints.begin_attempt(row.id)
        if outcome is not None:
            history.checkpoints.end_attempt(attempt, outcome)
    after = wait_again(row, history)
    assert after.state == state
    assert [reason.code for reason in after.reasons] == (["no-verdict"] if state == "held" else [])


def test_the_published_head_must_be_as_it_was_written(merge: Sandbox, history: History) -> None:
    check_head(merge.store, history)
    os.truncate(writable(merge.store.model(3) / "model.safetensors"), 100)
    with pytest.raises(Damaged, match="v3"):
        check_head(merge.store, history)


def test_slots_of_ours_that_are_damaged_are_no_fault_of_a_checkpoint(merge: Sandbox, history: History) -> None:
    path = next((merge.state / "versions" / "000003").glob("slots-*"))
    data = bytearray(path.read_bytes())
    data[8] ^= 1  # the first byte of its header
    writable(path).write_bytes(data)
    merge.drop("d", 4)
    row = next(row for row in merge.fold_all() if row.name == "d")
    assert row.state == "ready"
    assert [attempt.outcome for attempt in history.checkpoints.attempts(row.id)] == ["abandoned"]  # no strike
    assert [version.damaged for version in merge.versions()] == [None, None, "versions/000003/slots-00001.safetensors"]
    assert merge.store.pointed() == 3  # its model is sound
    paused = history.paused()
    assert paused is not None
    assert "mergd rollback v2" in paused["why"]
