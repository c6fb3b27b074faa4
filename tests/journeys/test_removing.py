"""Taking a checkpoint out again, and making dropped versions once more: by the loop, by the command line, through crashes."""

import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import sqrt
from pathlib import Path
from typing import Any

import pytest
import torch
from support.commands import Command, eventually
from support.merges import NO_LIMITS, Sandbox, make_merge
from support.models import drop_adapter, fine_tuned, tiny_base

from mergd.daemon.requests import Fold, Remove, Replay, Rollback
from mergd.plugins.rules import opcm
from mergd.state.errors import MergdError, Unavailable, Usage
from mergd.state.history import History

pytestmark = pytest.mark.long

NAMES = "abcdef"
OPTIONS: dict[str, dict[str, Any]] = {
    "opcm": {}, "opcm, with every direction": {"rule": "opcm", "parameters": {"variant": "block_diagonal"}},
    "average": {"rule": "average"}, "task arithmetic": {"rule": "task_arithmetic"},
}  # fmt: skip


def filled(root: Path, names: str = NAMES, **settings: Any) -> Sandbox:
    """Return a merge that has folded these, in this order."""
    merge = make_merge(root, limits=NO_LIMITS, **settings)
    for name in names:
        merge.drop(name, ord(name))
    merge.fold_all()
    return merge


def ask(merge: Sandbox, *requests: Any) -> list[dict[str, Any]]:
    """Have requests carried out, one after the other."""
    with merge.loop() as loop:
        return [loop.ask(request) for request in requests]


def listed(merge: Sandbox) -> dict[str, tuple[str, bool]]:
    """Return each checkpoint's state, and whether it is in the model."""
    return {row["name"]: (row["state"], row["in_model"]) for row in merge.mergd("list", "--json").json}


# ------------------------------------------------------------------------------------------------------------ removing


@pytest.mark.parametrize("name", [NAMES[0], NAMES[1], NAMES[-1]])
@pytest.mark.parametrize("options", OPTIONS)
def test_without_a_checkpoint_the_bytes_are_those_of_folding_the_others(
    tmp_path: Path, options: str, name: str
) -> None:
    merge = filled(tmp_path / "all", **OPTIONS[options])
    others = filled(tmp_path / "others", NAMES.replace(name, ""), **OPTIONS[options])
    (answer,) = ask(merge, Remove(checkpoint=name, exact=True))
    assert answer["head"] == len(NAMES) + 1
    head, expected = merge.versions()[-1], others.versions()[-1]
    assert (head.digest, head.totals, head.scale) == (expected.digest, expected.totals, expected.scale)
    assert head.cause == "remove"
    assert listed(merge) == {other: ("folded", other != name) for other in NAMES}
    assert merge.mergd("verify").code == 0


def test_the_only_one_leaves_the_base_model(tmp_path: Path) -> None:
    merge = filled(tmp_path, "a")
    ask(merge, Remove(checkpoint="a"))
    assert merge.versions()[-1].totals.folded == 0
    assert all(torch.equal(tensor, merge.model[name]) for name, tensor in merge.published().items())
    merge.drop("b", 1)
    merge.fold_all()
    assert merge.versions()[-1].totals.folded == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_second_of_fifty_is_subtracted_after_a_restart(tmp_path: Path, dtype: torch.dtype) -> None:
    base = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in tiny_base().items()}
    merge = make_merge(tmp_path, base, rule="average", limits=NO_LIMITS, keep_last=2, keep_within=0)
    for k in range(50):
        merge.drop(f"{k:02d}", fine_tuned(base, k))
    merge.fold_all()
    norms = 0.0
    expected = {name: torch.zeros(tensor.shape, dtype=torch.float64) for name, tensor in merge.readouts(50).items()}
    for k in range(50):
        deltas = {n: t.double() - base[n].double() for n, t in fine_tuned(base, k).items() if n in expected}
        norms += sqrt(sum(float(delta.square().sum()) for delta in deltas.values()))
        for name, delta in deltas.items():
            expected[name] += delta if k != 1 else 0.0
    before = merge.versions()[-1]
    (answer,) = ask(merge, Remove(checkpoint="01"))
    assert (answer["how"], answer["steps"], answer["bytes"]) == ("subtraction", 1, answer["bytes"])
    error = sqrt(sum(float((t - expected[n]).square().sum()) for n, t in merge.readouts(51).items()))
    assert error <= 1e-6 * norms
    head = merge.versions()[-1]
    assert (head.totals.folded, head.parent) == (49, before.number)
    assert listed(merge)["01"] == ("folded", False)


def test_what_was_taken_out_stays_out_until_somebody_wants_it_back(tmp_path: Path) -> None:
    merge = filled(tmp_path)
    ask(merge, Remove(checkpoint="c"))
    shutil.copytree(merge.watch / "c", merge.watch / "c under another name")
    merge.fold_all()
    assert len(merge.versions()) == len(NAMES) + 1
    with pytest.raises(MergdError, match="not in the model"):
        ask(merge, Remove(checkpoint="c"))
    ask(merge, Fold(checkpoints=(str(merge.watch / "c"),), again=True))
    assert listed(merge)["c"] == ("folded", True)
    assert merge.versions()[-1].totals.folded == len(NAMES)
    ask(merge, Remove(checkpoint="c"), Rollback(version="7"))
    assert listed(merge)["c"] == ("folded", False)


def test_later_folds_and_removals_go_on_from_there(tmp_path: Path) -> None:
    merge, others = filled(tmp_path / "all"), filled(tmp_path / "others", "adefg")
    ask(merge, Remove(checkpoint="b"), Remove(checkpoint="c"))
    merge.drop("g", ord("g"))
    merge.fold_all()
    assert merge.versions()[-1].digest == others.versions()[-1].digest


# ------------------------------------------------------------------------------------- what it takes, and what is gone


def everything(merge: Sandbox) -> Any:
    """Return all that must not change when nothing can be done."""
    files = {version.number: merge.weight_files(version.number) for version in merge.versions()}
    with History(merge.store.database) as history:
        return merge.versions(), merge.checkpoints(), files, history.moves(), history.tasks.waiting()


def test_it_is_said_beforehand_and_by_a_dry_run_alone_nothing_changes(tmp_path: Path) -> None:
    merge = filled(tmp_path)
    before = everything(merge)
    planned = merge.mergd("remove", "c", "-n")
    assert planned.code == 0
    assert planned.out.startswith("3 folds onto v2: ")
    assert everything(merge) == before
    done = merge.mergd("remove", "c")
    assert (done.code, done.out) == (0, "v7 is there; the head is v7\n")
    assert "3 folds onto v2" in done.err
    assert merge.mergd("remove", "b", "-n").out.startswith("3 folds onto v1: ")


@pytest.mark.parametrize("rule", ["opcm", "average"])
def test_where_a_source_is_gone_nothing_changes_and_it_is_named(tmp_path: Path, rule: str) -> None:
    merge = filled(tmp_path, rule=rule)
    merge.remove("c")
    merge.remove("e")
    before = everything(merge)
    with pytest.raises(Unavailable, match=r"the source is gone of .*e \(") as raised:
        ask(merge, Remove(checkpoint="c"))
    assert "nothing was changed" in raised.value.hint
    assert everything(merge) == before


def test_where_the_one_is_gone_but_not_the_others_they_are_folded_again(tmp_path: Path) -> None:
    merge, others = filled(tmp_path / "all", rule="average"), filled(tmp_path / "others", "abdef", rule="average")
    merge.remove("c")
    (answer,) = ask(merge, Remove(checkpoint="c"))
    assert answer["how"] == "replay"
    assert merge.versions()[-1].digest == others.versions()[-1].digest


def test_a_source_that_holds_something_else_by_now_ends_it_without_a_trace(tmp_path: Path) -> None:
    merge = filled(tmp_path)
    before = everything(merge)
    path = merge.watch / "e" / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with merge.loop() as loop, pytest.raises(MergdError, match="other content"):
        loop.ask(Remove(checkpoint="c"))
    versions, _, *rest = everything(merge)
    assert [versions, *rest] == [before[0], *before[2:]]
    assert not os.listdir(merge.state / "drafts")


# ------------------------------------------------------------------------------------------------------------- archive


def test_adapters_are_pinned_and_need_no_place_any_more(tmp_path: Path) -> None:
    merge, others = (make_merge(tmp_path / name, limits=NO_LIMITS) for name in ("all", "others"))
    for r in (1, 2, 3, 4):
        drop_adapter(merge.watch / f"r{r}", r)
        merge.fold_all()
        if r != 2:
            drop_adapter(others.watch / f"r{r}", r)
            others.fold_all()
    for r in (1, 2, 3, 4):
        merge.remove(f"r{r}")
    ask(merge, Remove(checkpoint="r2"))
    assert merge.versions()[-1].digest == others.versions()[-1].digest
    assert {path.stat().st_mode & 0o777 for path in (merge.state / "archive").rglob("*.*")} == {0o600}


def test_full_models_are_pinned_within_their_budget_the_newest_first(tmp_path: Path) -> None:
    merge = make_merge(tmp_path, limits=NO_LIMITS, archive={"full": 4000})
    for name in "abcde":  # 1.3 kB each
        merge.drop(name, ord(name))
        merge.fold_all()
        merge.remove(name)
    rows = {row.name: row.digest for row in merge.checkpoints()}
    kept = sorted(path.name for path in (merge.state / "archive").iterdir())
    assert kept == sorted(rows[name] or "" for name in "cde")
    with pytest.raises(Unavailable, match=r"gone of b \("):
        ask(merge, Remove(checkpoint="a"))
    ask(merge, Remove(checkpoint="b"))


def test_a_lone_file_is_pinned_too(tmp_path: Path) -> None:
    merge = make_merge(tmp_path, limits=NO_LIMITS, archive={"full": "1MB"})
    for name in ("a.safetensors", "b.safetensors"):
        merge.drop(name, ord(name[0]))
        merge.fold_all()
        (merge.watch / name).unlink()
    ask(merge, Remove(checkpoint="a"))
    assert merge.versions()[-1].totals.folded == 1


def test_nothing_is_pinned_unless_the_settings_say_so(tmp_path: Path) -> None:
    merge = make_merge(tmp_path, archive={"adapters": False})
    merge.drop("a", 1)
    drop_adapter(merge.watch / "b")
    merge.fold_all()
    assert not (merge.state / "archive").exists()


# -------------------------------------------------------------------------------------------------------------- replay


def test_every_dropped_version_comes_back_to_the_same_bytes(tmp_path: Path) -> None:
    merge = filled(tmp_path)
    ask(merge, Remove(checkpoint="b"))
    merge.drop("g", ord("g"))
    merge.fold_all()
    before = {version.number: merge.weight_files(version.number) for version in merge.versions()}
    with History(merge.store.database, write=True) as history:
        for number in range(1, 8):
            for part in ("slots", "model"):
                history.drop_files(number, part)
                merge.store.drop(number, part)
    ask(merge, *(Replay(version=str(number)) for number in range(1, 8)))
    assert {version.number: merge.weight_files(version.number) for version in merge.versions()} == before
    assert all(version.kept and version.slots_kept for version in merge.versions())
    ask(merge, Rollback(version="3"))
    merge.drop("h", ord("h"))
    merge.fold_all()
    assert merge.versions()[-1].totals.folded == 4


def test_a_subtraction_is_replayed_as_such(tmp_path: Path) -> None:
    merge = filled(tmp_path, rule="average")
    ask(merge, Remove(checkpoint="b"))
    before = merge.weight_files(7)
    with History(merge.store.database, write=True) as history:
        history.drop_files(7, "slots")
        merge.store.drop(7, "slots")
    assert merge.weight_files(7) != before
    ask(merge, Replay(version="7"))
    assert merge.weight_files(7) == before


def test_nothing_is_replayed_from_damaged_slots(tmp_path: Path) -> None:
    merge = filled(tmp_path)
    with History(merge.store.database, write=True) as history:
        for part in ("slots", "model"):
            history.drop_files(2, part)
            merge.store.drop(2, part)
    slots = next((merge.state / "versions" / "000001").glob("slots-*"))
    data = bytearray(slots.read_bytes())
    data[-1] ^= 1  # the version that it starts from is not what it was
    slots.write_bytes(data)
    before = merge.weight_files(2)
    with pytest.raises(MergdError, match="not as it was written"):
        ask(merge, Replay(version="2"))
    assert merge.weight_files(2) == before
    assert not merge.versions()[1].kept


def test_a_rule_that_gives_other_bytes_than_it_did_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    merge = filled(tmp_path)
    with History(merge.store.database, write=True) as history:
        history.drop_files(2, "slots")
        merge.store.drop(2, "slots")
    before = merge.weight_files(2)
    coordinates = opcm.coordinates
    monkeypatch.setattr(opcm, "coordinates", lambda D, U, V: coordinates(D, U, V) * (1 + 1e-5))
    with pytest.raises(MergdError, match="other slots"):
        ask(merge, Replay(version="2"))
    assert merge.weight_files(2) == before
    assert not merge.versions()[1].slots_kept


def test_a_damaged_model_is_made_again_from_its_slots_though_every_source_is_gone(tmp_path: Path) -> None:
    merge = filled(tmp_path, "a")
    merge.remove("a")
    before = merge.weight_files(1)
    path = merge.store.model(1) / "model.safetensors"
    path.chmod(0o600)
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert merge.mergd("verify").code == 74
    assert merge.mergd("run", "--once").code == 74  # there is no other version to serve
    assert merge.mergd("replay", "v1").code == 0
    assert merge.weight_files(1) == before
    assert merge.mergd("verify").code == 0


def test_a_version_that_is_there_is_held_against_what_its_sources_give(tmp_path: Path) -> None:
    merge = filled(tmp_path, "abc")
    ask(merge, Remove(checkpoint="b"))
    before = [merge.weight_files(number) for number in (1, 2, 3, 4)]
    verified = merge.mergd("verify", "v3", "--replay")
    assert (verified.code, verified.out.splitlines()[-1]) == (
        0, "v3 was made once more, in 1 step: the same bytes came of it",
    )  # fmt: skip
    assert merge.mergd("verify", "--replay", "--json").json["replayed"]["version"] == 4
    assert [merge.weight_files(number) for number in (1, 2, 3, 4)] == before
    assert len(merge.versions()) == 4
    merge.remove("c")
    assert merge.mergd("verify", "v3", "--replay").code == 69


def test_the_log_says_what_became_of_files_and_whether_they_can_be_made_again(tmp_path: Path) -> None:
    merge = filled(tmp_path)
    ask(merge, Remove(checkpoint="f"))
    with History(merge.store.database, write=True) as history:
        for number, parts in ((1, ("slots", "model")), (2, ("slots", "model")), (3, ("slots",)), (5, ("model",))):
            for part in parts:
                history.drop_files(number, part)  # type: ignore[arg-type]
                merge.store.drop(number, part)  # type: ignore[arg-type]
        history.checks.damaged(4, ["models/000004/config.json"])
    merge.remove("b")
    files = {entry["version"]: entry["files"] for entry in merge.log()}
    assert files == {
        1: "replayable", 2: "gone", 3: "kept without slots", 4: "damaged", 5: "replayable", 6: "kept", 7: "kept",
    }  # fmt: skip
    shown = merge.mergd("log").out
    assert "without f" in shown
    assert shown.count("mergd replay makes it once more") == 2


def test_what_is_there_needs_no_replay(tmp_path: Path) -> None:
    with pytest.raises(Usage, match="are there"):
        ask(filled(tmp_path, "ab"), Replay(version="1"))


# --------------------------------------------------------------------------------------------------- while it is done


@pytest.fixture
def slow(tmp_path: Path) -> Sandbox:
    """A merge that has folded four checkpoints, of which each takes a while."""
    generator = torch.Generator().manual_seed(0)
    base = {f"layer.{k}.weight": torch.randn(500, 500, generator=generator) for k in range(8)}
    merge = make_merge(tmp_path, base, limits=NO_LIMITS)
    for seed, name in enumerate("abcd"):
        merge.drop(name, seed)
    merge.fold_all()
    return merge


@contextmanager
def served(merge: Sandbox) -> Iterator[Command]:
    """Run the daemon, and give it the time to listen."""
    with merge.running("run") as daemon:
        eventually(lambda: "watching" in daemon.err)
        yield daemon


def removing(merge: Sandbox) -> Callable[[], bool]:
    """Return what tells whether a removal is being done."""
    return lambda: "removing" in (merge.state / "status.json").read_text()


def test_a_removal_outlives_a_crash_of_the_daemon(slow: Sandbox) -> None:
    with served(slow) as daemon, slow.running("remove", "a") as command:
        eventually(removing(slow))
        daemon.send(signal.SIGKILL)
        assert command.ended().code == 75
    assert slow.log()[0]["version"] == 4
    with served(slow):
        eventually(lambda: slow.log()[0]["version"] == 5)
    assert slow.log()[0]["cause"] == "remove"
    assert listed(slow)["a"] == ("folded", False)


def test_a_command_that_is_interrupted_leaves_the_removal_to_the_daemon(slow: Sandbox) -> None:
    with served(slow) as daemon, slow.running("remove", "a") as command:
        eventually(removing(slow))
        daemon.send(signal.SIGSTOP)  # so that it is not done first
        command.send(signal.SIGINT)
        time.sleep(0.5)
        daemon.send(signal.SIGCONT)
        assert command.ended().code == 130
        eventually(lambda: slow.log()[0]["version"] == 5)


def test_a_rollback_goes_before_and_a_removal_that_has_nothing_to_remove_any_more_ends(slow: Sandbox) -> None:
    with served(slow), slow.running("remove", "b") as command:
        eventually(removing(slow))
        assert slow.mergd("rollback", "v1").code == 0
        ended = command.ended()
        assert ended.code == 2
        assert "b is not in the model" in ended.err
    assert [entry["version"] for entry in slow.log()] == [4, 3, 2, 1]


def test_a_removal_is_done_while_folding_is_paused_and_the_old_head_is_served_meanwhile(slow: Sandbox) -> None:
    with served(slow):
        assert slow.mergd("pause").code == 0
        with slow.running("remove", "a") as command:
            eventually(removing(slow))
            assert os.readlink(slow.store.current) == "000004"
            assert slow.mergd("pause", "--why", "again").code == 0
            assert command.ended().code == 0
        assert os.readlink(slow.store.current) == "000005"


def test_what_ends_the_daemon_three_times_is_given_up(slow: Sandbox) -> None:
    for _ in range(3):
        with History(slow.store.database, write=True) as history:
            if not history.tasks.waiting():
                history.tasks.add("remove", {"checkpoint": "a", "exact": False}, "a test")
            history.tasks.begin(1)  # and then the process was gone
    slow.fold_all()
    with History(slow.store.database) as history:
        assert "ended without an outcome" in str(history.tasks.get(1).outcome)
    assert len(slow.versions()) == 4


# ------------------------------------------------------------------------------------------------ folding on from there


def test_a_head_whose_slots_were_dropped_is_replayed_before_the_next_fold(tmp_path: Path) -> None:
    merge, others = filled(tmp_path / "all"), filled(tmp_path / "others", "abz")
    with History(merge.store.database, write=True) as history:
        for number in (1, 2):
            history.drop_files(number, "slots")
            merge.store.drop(number, "slots")
    assert merge.mergd("rollback", "v2").code == 0
    merge.drop("z", ord("z"))
    merge.fold_all()
    assert merge.versions()[-1].digest == others.versions()[-1].digest


def test_a_head_that_cannot_be_replayed_keeps_the_next_waiting_and_says_so(tmp_path: Path) -> None:
    merge = filled(tmp_path)
    with History(merge.store.database, write=True) as history:
        for number in (1, 2):
            history.drop_files(number, "slots")
            merge.store.drop(number, "slots")
    merge.remove("a")
    assert merge.mergd("rollback", "v2").code == 0
    merge.drop("z", ord("z"))
    ended = merge.mergd("run", "--once")
    assert ended.code == 69
    assert "v2" in ended.err
    assert f"the source is gone of a ({merge.watch / 'a'})" in ended.err
    assert listed(merge)["z"] == ("ready", False)
    assert merge.mergd("rollback", "v6").code == 0
    assert merge.mergd("run", "--once").code == 0
