"""Read-outs and re-merges upon, under and beside everything else: folds, removals, replays, damage, limits, old states."""

import os
import resource
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from journeys.test_reading import NAMES, ask, filled, in_model, merged, same
from journeys.test_seams import dropped, rebuilt, spoilt
from support.commands import Command, eventually
from support.merges import Sandbox, set_in
from support.models import MATRICES, save_model

from mergd.daemon import drafting, merging, remaking
from mergd.daemon.control import Ask
from mergd.daemon.loop import Loop
from mergd.daemon.requests import Pause, Publish, Remerge, Remove, Replay, Rollback
from mergd.state.errors import MergdError, Unavailable, Usage
from mergd.state.history import History
from mergd.state.manifests import read_manifest, text_of

pytestmark = pytest.mark.long

AT_ONCE: dict[str, Any] = {"rule": "consensus_ta", "parameters": {"lambda": 0.5}}


def without_model(merge: Sandbox, number: int) -> dict[str, str]:
    """Let a version have lost its published model to retention; returns what all of its files were."""
    before = merge.weight_files(number)
    with History(merge.store.database, write=True) as history:
        history.drop_files(number, "model")
    merge.store.drop(number, "model")
    return before


# ------------------------------------------------------------------------------- what a batch rule read is in no slot


def test_the_model_that_a_batch_rule_read_is_made_again_from_sources_though_its_slots_are_there(tmp_path: Path) -> None:
    merge = filled(tmp_path, rule="average")
    ask(merge, Remerge(**AT_ONCE), Publish(rule="task_arithmetic"))
    before = without_model(merge, 5)
    assert {entry["version"]: entry["files"] for entry in merge.log()}[5] == "replayable"
    ended = merge.mergd("export", "v5", tmp_path / "out", "--lora", "4")
    assert (ended.code, "dropped by retention" in ended.err) == (2, True)
    ask(merge, Replay(version="v5"))
    assert merge.weight_files(5) == before


def test_it_is_gone_where_a_source_is(tmp_path: Path) -> None:
    merge = filled(tmp_path, rule="average")
    ask(merge, Remerge(**AT_ONCE), Publish(rule="task_arithmetic"))
    without_model(merge, 5)
    merge.remove("b")
    assert {entry["version"]: entry["files"] for entry in merge.log()}[5] == "gone"
    with pytest.raises(Unavailable, match=r"gone of b \("):
        ask(merge, Replay(version="v5"))
    merge.drop("e", 5)
    merge.fold_all()  # the slots are there, and what comes after needs no more
    assert merge.versions()[-1].totals.folded == len(NAMES) + 1


def test_the_scale_of_a_batch_rule_is_by_the_norm_with_its_own_factors(tmp_path: Path) -> None:
    merge = filled(tmp_path, rule="average")
    ask(merge, Remerge(**AT_ONCE, scale="mean-norm", lines={"alpha": 0.25}))
    whole = sum(float(tensor.double().square().sum()) for tensor in merged(merge).values()) ** 0.5
    assert whole == pytest.approx(merge.versions()[-1].totals.mean_norm, rel=1e-4)


def test_its_disk_is_what_it_takes(tmp_path: Path) -> None:
    merge = filled(tmp_path, rule="average")
    needs = [ask(merge, Remerge(rule=rule, plan=True))[0]["disk"] for rule in ("average", "consensus_ta")]
    assert needs[1] - needs[0] == sum(4 * tensor.numel() for tensor in merged(merge).values())


# ---------------------------------------------------------------------------------------- while something else is done


class Held:
    """Work on the folding thread that waits in a function until it is let go."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, module: Any, name: str) -> None:
        self.begun, self.go = threading.Event(), threading.Event()
        real = getattr(module, name)

        def waits(*arguments: Any, **named: Any) -> Any:
            self.begun.set()
            assert self.go.wait(60)
            return real(*arguments, **named)

        monkeypatch.setattr(module, name, waits)

    def reached(self, loop: Loop) -> None:
        """Let the loop take turns until the work is here."""
        while not self.begun.is_set():
            loop.turn()

    def answered(self, loop: Loop, ask: Ask) -> Any:
        """Let the work go on, and the loop take turns until somebody is answered."""
        self.go.set()
        while ask.outcome is None:
            loop.turn()
        return ask.outcome


def test_a_read_out_that_is_asked_for_during_a_fold_is_made_of_what_was_folded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    merge = filled(tmp_path, rule="average")
    merge.drop("e", 5)
    held, ask_ = Held(monkeypatch, drafting, "fold"), Ask(Publish(rule="task_arithmetic"), "a test")
    with merge.loop() as loop:
        loop.post("rescan")
        held.reached(loop)
        loop.post(ask_)
        held.answered(loop, ask_)
    assert [(v.number, v.parent, v.cause) for v in merge.versions()[-2:]] == [(5, 4, "fold"), (6, 5, "read-out")]
    assert merge.versions()[-1].totals.folded == len(NAMES) + 1


def test_a_checkpoint_that_arrives_during_a_re_merge_is_folded_onto_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    merge, other = filled(tmp_path, rule="average"), filled(tmp_path / "other", "abcde")
    held, ask_ = Held(monkeypatch, remaking, "remerge"), Ask(Remerge(rule="opcm"), "a test")
    with merge.loop() as loop:
        loop.post(ask_)
        held.reached(loop)
        merge.drop("e", ord("e"))
        loop.post("rescan")
        held.answered(loop, ask_)
        loop.run(until=loop.idle)
    assert [(v.cause, v.rule) for v in merge.versions()[-2:]] == [("re-merge", "opcm"), ("fold", "opcm")]
    assert torch.equal(merge.published()[MATRICES[0]], other.published()[MATRICES[0]])


@pytest.mark.parametrize("pause", [False, True])
def test_a_rollback_goes_before_a_re_merge_which_is_made_of_what_is_then_in_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pause: bool
) -> None:
    merge = filled(tmp_path, rule="average")
    held, ask_ = Held(monkeypatch, remaking, "remerge"), Ask(Remerge(rule="opcm"), "a test")
    back = Ask(Rollback(version="v2", pause=pause), "a test")
    with merge.loop() as loop:
        loop.post(ask_)
        held.reached(loop)
        loop.post(back)
        while back.outcome is None:
            loop.turn()
        assert loop._history.moves(1)[0].to_version == 2, "it waits for nobody"
        held.answered(loop, ask_)
    head = merge.versions()[-1]
    assert (head.number, head.parent, head.totals.folded) == (5, 2, 2)
    assert in_model(merge) == {"a", "b"}
    assert not os.listdir(merge.state / "drafts")


def test_a_pause_does_not_stop_a_re_merge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    merge = filled(tmp_path, rule="average")
    held, ask_ = Held(monkeypatch, remaking, "remerge"), Ask(Remerge(rule="opcm"), "a test")
    with merge.loop() as loop:
        loop.post(ask_)
        held.reached(loop)
        loop.post(Ask(Pause(why="a test"), "a test"))
        held.answered(loop, ask_)
    with History(merge.store.database) as history:
        assert history.paused()
    assert merge.versions()[-1].cause == "re-merge"


@pytest.mark.parametrize("at", ["all_weights", "finish"])
def test_a_source_that_changes_during_a_re_merge_ends_it_without_a_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    merge = filled(tmp_path, rule="average")
    path, real = merge.watch / "b" / "model.safetensors", getattr(merging._Together, at)
    text = path.read_bytes()

    def changed(self: Any) -> Any:
        path.write_bytes(text[:-4] + b"\0\0\0\0")
        return real(self)

    with monkeypatch.context() as patch, pytest.raises(MergdError, match=r"changed while it was merged"):
        patch.setattr(merging._Together, at, changed)
        ask(merge, Remerge(rule="opcm"))
    assert len(merge.versions()) == len(NAMES)
    assert not os.listdir(merge.state / "drafts")
    path.write_bytes(text)
    ask(merge, Remerge(rule="opcm"))
    assert in_model(merge) == set(NAMES)


# ------------------------------------------------------------------------------------------------- upon one another


@pytest.mark.parametrize("rule", ["opcm", "task_arithmetic"])
@pytest.mark.parametrize("exact", [True, False])
def test_after_a_re_merge_a_checkpoint_is_taken_out_as_if_the_others_had_been_folded_by_its_rule(
    tmp_path: Path, rule: str, exact: bool
) -> None:
    merge, others = filled(tmp_path, rule="average"), filled(tmp_path / "others", "acde", rule=rule)
    ask(merge, Remerge(rule=rule))
    merge.drop("e", ord("e"))
    merge.fold_all()
    (answer,) = ask(merge, Remove(checkpoint="b", exact=exact))
    by_subtraction = rule == "task_arithmetic" and not exact
    assert answer["how"] == ("subtraction" if by_subtraction else "replay")
    assert in_model(merge) == {"a", "c", "d", "e"}
    if by_subtraction:
        assert same(merged(merge), merged(others))
    else:
        assert merge.versions()[-1].digest == others.versions()[-1].digest
    ask(merge, Remove(checkpoint="e"))
    assert in_model(merge) == {"a", "c", "d"}


def test_a_second_re_merge_is_of_what_is_still_in_the_model(tmp_path: Path) -> None:
    merge, others = filled(tmp_path, rule="average"), filled(tmp_path / "others", "ad")
    ask(merge, Remerge(rule="opcm"), Remove(checkpoint="b"), Remerge(rule="average"), Remove(checkpoint="c"))
    ask(merge, Remerge(rule="opcm"))
    assert merge.versions()[-1].digest == others.versions()[-1].digest
    for name in "ad":
        ask(merge, Remove(checkpoint=name))
    with pytest.raises(Usage, match="no checkpoint in the model"):
        ask(merge, Remerge(rule="average"))


def test_the_former_rule_reads_again_what_it_read_before(tmp_path: Path) -> None:
    merge = filled(tmp_path, rule="average")
    ask(merge, Publish(rule="task_arithmetic", scale=0.1), Remerge(**AT_ONCE))
    for rule in ("average", "task_arithmetic", "average"):
        ask(merge, Publish(rule=rule, scale="rule"))
    files = [merge.weight_files(number)[f"models/{number:06d}/model.safetensors"] for number in (4, 7, 9)]
    assert len(set(files)) == 1
    assert (merge.versions()[-1].method, merge.versions()[-1].digest) == ({}, merge.versions()[3].digest)


@pytest.mark.parametrize("request_", [Publish(rule="task_arithmetic"), Remerge(rule="task_arithmetic")])
def test_new_content_waits_for_a_person_after_a_person_had_it_read_otherwise(
    tmp_path: Path, request_: Publish | Remerge
) -> None:
    merge = filled(tmp_path, "ab", rule="average", on_change="replace")
    ask(merge, request_)
    save_model(merge.watch / "b", merge.fine_tuned(99))
    merge.fold_all()
    (row,) = [row for row in merge.checkpoints() if row.state == "held"]
    assert (row.reasons[0].code, "v3 (re" in row.reasons[0].found) == ("replace-later", True)
    removed, approved = row.reasons[0].next_step.split("that one: ")[1].split("; ")
    for words in (removed, approved):
        assert merge.mergd(*words.split()[1:]).code == 0
    merge.fold_all()
    assert merge.versions()[-1].totals.folded == 2
    assert same(merged(merge), merged(replaced(tmp_path / "other")))


def replaced(root: Path) -> Sandbox:
    """Return a merge that read the sum of a and of what b was replaced by."""
    merge = filled(root, "a", rule="task_arithmetic")
    merge.drop("b", 99)
    merge.fold_all()
    return merge


# --------------------------------------------------------------------------------------- retention, damage and old states


def test_a_re_merge_needs_no_slots_and_a_read_out_makes_those_it_needs(tmp_path: Path) -> None:
    merge = filled(tmp_path, rule="average")
    dropped(merge, 1, 2, 3, 4)
    planned, done = ask(merge, Publish(rule="task_arithmetic", plan=True), Remerge(rule="opcm"))
    assert (planned["how"], planned["folds"], done["how"]) == ("read-out", len(NAMES) + 1, "re-merge")
    assert not any(version.slots_kept for version in merge.versions()[:4])
    assert merge.mergd("rollback", "v4").code == 0
    ask(merge, Publish(rule="task_arithmetic"))
    assert same(merged(merge), merged(filled(tmp_path / "other", rule="task_arithmetic")))
    assert merge.mergd("verify", "--replay").code == 0


def test_the_manifest_of_a_fold_that_is_spoilt_takes_nothing_from_a_re_merge(tmp_path: Path) -> None:
    merge = filled(tmp_path, rule="average")
    ask(merge, Remerge(rule="task_arithmetic"))
    before = merge.published()
    spoilt(merge, 2)
    rebuilt(merge)
    assert all(torch.equal(before[name], tensor) for name, tensor in merge.published().items())
    assert in_model(merge) == set(NAMES)
    assert merge.mergd("fold", "--again", merge.watch / "b").code != 0
    assert merge.mergd("remove", "c").code == 69  # nobody knows what v2 took out
    for words in (["verify", "v5", "--replay"], ["publish", "--scale", "0.5"], ["remerge", "--rule", "opcm"]):
        ended = merge.mergd(*words)
        assert ended.code == 0, ended.err
    assert merge.versions()[-1].totals.folded == len(NAMES)


def as_of_old(merge: Sandbox) -> None:
    """Leave a state as a mergd left it that knew no methods: in the database, and in the manifests."""
    since = ("scale", "lines", "normalise", "also_keep")
    with sqlite3.connect(merge.store.database) as db:
        db.execute("alter table versions drop column method")
        db.execute("delete from _sqlite_migrations where name like 'm008%'")
        db.execute(f"delete from pins where name in ({','.join('?' * len(since))})", since)
    db.close()
    for path in (merge.state / "versions").glob("*/manifest.json"):
        manifest = read_manifest(path)
        manifest.pop("method", None)
        manifest["pinned"] = {name: value for name, value in manifest["pinned"].items() if name not in since}
        path.chmod(0o600)
        path.write_bytes(text_of(manifest))


def test_a_state_from_before_there_were_methods_is_read_out_and_merged_anew(tmp_path: Path) -> None:
    merge, plain = filled(tmp_path, rule="average"), filled(tmp_path / "plain", "abcde", rule="average")
    as_of_old(merge)
    merge.drop("e", ord("e"))
    merge.fold_all()
    assert merge.versions()[-1].digest == plain.versions()[-1].digest
    as_of_old(merge)
    ended = rebuilt(merge).mergd("verify", "--replay")
    assert ended.code == 0, ended.err
    ask(merge, Publish(rule="task_arithmetic"), Remerge(rule="opcm"), Replay(version="v2", check=True))
    rebuilt(merge)
    assert [v.rule for v in merge.versions()] == ["average"] * 5 + ["task_arithmetic", "opcm"]
    assert merge.mergd("verify").code == 0


# --------------------------------------------------------------------------------------------------- gates, and looking


def test_the_users_gates_do_not_look_at_what_a_person_asked_for(merge: Sandbox, their_news: Path) -> None:
    merge.drop("a", 1)
    merge.fold_all()
    set_in(merge.config, gates='["their_gate"]')
    merge.drop("doubtful", 2)
    ask(merge, Publish(scale=0.5), Remerge(rule="average"))
    assert [(v.cause, v.gates) for v in merge.versions()[1:]] == [("read-out", ()), ("re-merge", ())]
    merge.fold_all()
    assert merge.states()["doubtful"] == "held"


@pytest.mark.parametrize("request_", [Publish(scale=0.5), Remerge(rule="opcm"), Remerge(**AT_ONCE)])
def test_it_is_shown_checked_against_and_exported_like_any_other(tmp_path: Path, request_: Publish | Remerge) -> None:
    merge = filled(tmp_path, rule="average")
    ask(merge, request_)
    place = merge.drop("e", 5)
    for words in (["show", "v5"], ["show", "v5", "--json"], ["log"], ["list"], ["status"], ["verify"], ["show", "a"]):
        ended = merge.mergd(*words)
        assert ended.code in (0, 69 if words == ["status"] else 0), (words, ended.err)
    checked = merge.mergd("check", "--deep", place)
    assert checked.code == 0, checked.err
    exported = merge.mergd("export", "v5", tmp_path / "out")
    assert exported.code == 0, exported.err
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (
        merge.store.model(5) / "model.safetensors"
    ).read_bytes()
    merge.fold_all()
    assert merge.states()["e"] == "folded"


# ------------------------------------------------------------------------------------------------------------ open files


@contextmanager
def limited(merge: Sandbox, soft: int, hard: int) -> Iterator[Command]:
    """Run a daemon that may have so many files open."""
    with merge.running("run") as daemon:
        eventually(lambda: "watching" in daemon.err)
        resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (soft, hard))
        yield daemon


def test_more_open_files_than_there_may_be_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    merge = filled(tmp_path)
    with limited(merge, 66, 66):
        for words in (["remerge", "--rule", "average"], ["remerge", "--rule", "average", "-n"]):
            ended = merge.mergd(*words)
            assert ended.code == 78
            assert "files are to be open at once, and 2 are allowed" in ended.err
            assert "LimitNOFILE=" in ended.err
    with History(merge.store.database) as history:
        assert not history.tasks.waiting()
    assert len(merge.versions()) == len(NAMES)


def test_what_the_process_may_allow_itself_it_does(tmp_path: Path) -> None:
    merge = filled(tmp_path)
    with limited(merge, 66, 4096) as daemon:
        assert merge.mergd("remerge", "--rule", "average").code == 0
        assert 66 < resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE)[0] < 4096
