"""Verdicts by the real command line: what is held, what a person decides on it, and what is told beforehand."""

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO
from unittest.mock import Mock

import pytest
import torch
from support.commands import eventually
from support.merges import Sandbox, make_merge, set_in
from support.models import Model, save_lone, save_model, tiny_base

from mergd.daemon.deciding import preempts
from mergd.daemon.requests import AnyRequest, Pause, Refuse, Retry, Rollback
from mergd.plugins.sources.directory import Directory
from mergd.state import checkpoints
from mergd.state.history import History
from mergd.state.users import name_of

FAR = 0.7  # norms of the base: more than half, less than one in each matrix


@pytest.fixture
def held(merge: Sandbox) -> Sandbox:
    """A merge of one fine-tune, with another one held because it is far from the base."""
    merge.drop("a", 1)
    merge.drop("far", merge.fine_tuned(2, FAR))
    merge.fold_all()
    assert merge.states() == {"a": "folded", "far": "held"}
    return merge


def row_of(merge: Sandbox, name: str) -> dict[str, Any]:
    """Return what `mergd list --json` says of a checkpoint's newest row."""
    rows = [row for row in merge.mergd("list", "--json").json if row["name"] == name]
    found: dict[str, Any] = rows[-1]
    return found


def codes(row: dict[str, Any]) -> list[str]:
    return [reason["code"] for reason in row["reasons"]]


def requests(merge: Sandbox) -> list[tuple[str, str]]:
    """Return verb and answer of each request in the history."""
    with History(merge.store.database) as history:
        return list(history._db.execute("select verb, answer from requests order by id").fetchall())


# --------------------------------------------------------------------------------------------------------- the gate


def test_a_model_of_another_base_is_held_even_as_the_first_one(merge: Sandbox) -> None:
    merge.drop("stranger", tiny_base(seed=7))
    merge.mergd("run", "--once")
    row = row_of(merge, "stranger")
    assert (row["state"], codes(row)) == ("held", ["far-from-base", "far-weight"])
    assert merge.versions() == []


def test_a_checkpoint_is_known_by_who_owns_its_files(merge: Sandbox) -> None:
    merge.drop("a", 1)
    merge.mergd("run", "--once")
    assert row_of(merge, "a")["owner"] == name_of(os.getuid())
    with History(merge.store.database) as history:
        (brought,) = history.contributions.in_line(1, 1000)
    assert (brought.checkpoint, brought.contributor) == ("a", name_of(os.getuid()))
    assert brought.norm == pytest.approx(merge.versions()[0].totals.mean_norm)


def test_what_was_rolled_away_is_no_measure_for_those_after_it(merge: Sandbox) -> None:
    one = merge.fine_tuned(1)
    near = {name: t * 1.001 if t.is_floating_point() else t for name, t in one.items()}
    merge.drop("a", 2)
    merge.drop("b", one)
    merge.mergd("run", "--once")
    merge.mergd("rollback", "v1")
    merge.drop("near-b", near)
    merge.mergd("run", "--once")
    assert merge.states()["near-b"] == "folded"


# --------------------------------------------------------------------------------------------------------- approve


def test_an_approved_checkpoint_is_folded_on_the_head_of_that_moment(held: Sandbox) -> None:
    held.drop("b", 3)
    held.mergd("run", "--once")
    approved = held.mergd("approve", "far")
    assert approved.code == 0, approved.err
    assert "far-from-base is no reason any more" in approved.out
    assert "mergd run --once" in approved.out
    assert held.states()["far"] == "ready"
    assert held.mergd("run", "--once").code == 0
    assert held.states()["far"] == "folded"
    assert held.log()[0]["parent"] == 2
    assert requests(held)[-1] == ("approve", "done")


def test_who_approved_what_and_when_is_shown(held: Sandbox) -> None:
    held.mergd("approve", "far")
    (decision,) = row_of(held, "far")["decisions"]
    assert (decision["verdict"], decision["code"]) == ("approved", "far-from-base")
    assert decision["who"] == f"uid {os.getuid()}"
    assert decision["at"].endswith("Z")
    assert held.mergd("show", "far", "--json").json["decisions"] == [decision]
    for command in (["list"], ["show", "far"]):
        assert f"approved far-from-base by uid {os.getuid()}, " in held.mergd(*command).out


def test_a_new_reason_holds_it_again(held: Sandbox) -> None:
    held.mergd("approve", "far")
    set_in(held.config, weight_norm="0.5")
    held.mergd("run", "--once")
    row = row_of(held, "far")
    assert (row["state"], codes(row)) == ("held", ["far-weight"])
    held.mergd("approve", "far")
    held.mergd("run", "--once")
    assert held.states()["far"] == "folded"


def test_an_approval_is_for_that_content_alone(held: Sandbox) -> None:
    held.mergd("approve", "far")
    save_lone(held.watch / "far" / "model.safetensors", held.fine_tuned(9, FAR))
    held.mergd("run", "--once")
    assert (held.states()["far"], row_of(held, "far")["decisions"]) == ("held", [])


def test_an_approval_holds_for_the_same_content_in_other_files(held: Sandbox) -> None:
    held.mergd("approve", "far")
    held.remove("far")
    held.drop("moved.safetensors", held.fine_tuned(2, FAR))
    held.mergd("run", "--once")
    assert held.states()["moved.safetensors"] == "folded"


def test_nothing_is_approved_unless_all_can_be(held: Sandbox) -> None:
    for words in (["far", "a"], ["far", "nothing"]):
        assert held.mergd("approve", *words).code == 2
    assert held.states() == {"a": "folded", "far": "held"}
    assert requests(held)[-1][1].startswith("error: ")


def test_what_lay_there_at_init_is_folded_once_it_is_approved(tmp_path: Path) -> None:
    (tmp_path / "watch").mkdir()
    save_lone(tmp_path / "watch" / "old.safetensors", Sandbox(tmp_path, tiny_base()).fine_tuned(1))
    merge = make_merge(tmp_path)
    assert codes(row_of(merge, "old.safetensors")) == ["existing"]
    merge.mergd("approve", "old")
    merge.mergd("run", "--once")
    assert merge.states() == {"old.safetensors": "folded"}


@pytest.mark.parametrize(("existing", "state"), [("hold", "held"), ("ignore", "refused")])
@pytest.mark.parametrize("change", ["touched", "other"])
def test_what_lay_there_at_init_is_not_folded_because_it_was_touched(
    tmp_path: Path, existing: str, state: str, change: str
) -> None:
    merge, file = lying_there(tmp_path, existing=existing)
    if change == "other":
        save_lone(file, merge.fine_tuned(2))
    os.utime(file)
    merge.mergd("run", "--once")
    assert (merge.states(), codes(row_of(merge, "old.safetensors"))) == ({"old.safetensors": state}, ["existing"])
    assert merge.mergd("fold", file).code == 0
    assert merge.states() == {"old.safetensors": "folded"}


def test_what_is_to_be_folded_at_init_settles_like_whatever_arrives(tmp_path: Path) -> None:
    with (tmp_path / "half").open("wb") as writer:
        merge, file = lying_there(tmp_path, lambda path: write_half(path, writer), existing="fold")
        assert merge.states() == {"old.safetensors": "settling"}
        merge.mergd("run", "--once")
        assert merge.states() == {"old.safetensors": "settling"}
    save_lone(file, merge.fine_tuned(1))
    merge.mergd("run", "--once")
    assert merge.states() == {"old.safetensors": "folded"}


def write_half(path: Path, writer: BinaryIO) -> None:
    """Make of a file one of the same length that somebody still writes."""
    data = path.read_bytes()
    path.unlink()
    os.link(writer.name, path)
    writer.write(data[:-100])
    writer.truncate(len(data))
    writer.flush()


def lying_there(root: Path, then: Callable[[Path], None] = lambda path: None, **settings: Any) -> tuple[Sandbox, Path]:
    """Return a merge in whose watched folder a checkpoint lay at init, and its file."""
    (root / "watch").mkdir()
    file = save_lone(root / "watch" / "old.safetensors", Sandbox(root, tiny_base()).fine_tuned(1))
    then(file)
    return make_merge(root, **settings), file


@pytest.mark.parametrize("broken", ["half", "wrong"])
def test_a_fold_that_cannot_be_queued_lifts_no_hold(held: Sandbox, broken: str) -> None:
    (held.root / "half").mkdir()
    (held.root / "half" / "config.json").write_text("{}")
    save_model(held.root / "wrong", {"layer.matrix.bias": torch.zeros(7)})
    before = row_of(held, "far")
    assert held.mergd("fold", "far", held.root / broken).code in (65, 75)
    assert held.mergd("list", "--json").json == [row_of(held, "a"), before]
    held.mergd("run", "--once")
    assert held.states() == {"a": "folded", "far": "held"}


def test_a_gate_of_another_package_is_overruled_in_the_same_way(merge: Sandbox, their_news: Path) -> None:
    set_in(merge.config, gates='["their_gate"]')
    merge.drop("doubtful", 1)
    merge.fold_all()
    assert merge.states() == {"doubtful": "held"}
    merge.mergd("approve", "doubtful")
    merge.fold_all()
    assert merge.states() == {"doubtful": "folded"}


# ------------------------------------------------------------------------------------------------- refuse and retry


def test_a_refused_checkpoint_stays_out_and_says_by_whom_and_why(held: Sandbox) -> None:
    refused = held.mergd("refuse", "far", "--why", "trained on the test set")
    assert (refused.code, refused.out) == (0, "far is refused (it was held)\n")
    held.mergd("run", "--once")
    row = row_of(held, "far")
    assert (row["state"], codes(row)) == ("refused", ["refused-by-hand"])
    assert row["reasons"][0]["found"] == f"refused by uid {os.getuid()}: trained on the test set"
    assert "mergd retry" in row["reasons"][0]["next_step"]
    assert requests(held)[-1] == ("refuse", "done")


def test_content_that_was_refused_is_refused_under_any_name(held: Sandbox) -> None:
    held.mergd("refuse", "far", "--why", "poisoned")
    os.utime(held.watch / "far" / "model.safetensors")  # looks like a new one
    held.drop("again.safetensors", held.fine_tuned(2, FAR))
    held.mergd("run", "--once")
    assert held.states() == {"a": "folded", "far": "refused", "again.safetensors": "refused"}
    assert codes(row_of(held, "again.safetensors")) == ["refused-by-hand"]


@pytest.mark.parametrize("state", ["settling", "ready", "blocked"])
def test_what_is_not_judged_yet_can_be_refused(merge: Sandbox, state: Any) -> None:
    merge.drop("a", 1)
    sighting = Directory(merge.watch).sight(merge.watch / "a")
    assert sighting is not None
    with History(merge.store.database, write=True) as history:
        history.checkpoints.add(sighting, state)
    assert merge.mergd("refuse", "a", "--why", "no").code == 0
    merge.mergd("run", "--once")
    assert merge.states() == {"a": "refused"}


def test_retry_has_it_looked_at_from_the_start(held: Sandbox) -> None:
    held.mergd("refuse", "far", "--why", "a mistake")
    retried = held.mergd("retry", "far")
    assert retried.code == 0, retried.err
    assert "looked at again when the daemon runs" in retried.out
    held.mergd("run", "--once")
    assert held.states()["far"] == "held"  # as at first
    assert [d["verdict"] for d in row_of(held, "far")["decisions"]] == ["refused", "retried"]
    held.mergd("approve", "far")
    held.mergd("run", "--once")
    assert held.states()["far"] == "folded"


def test_retry_takes_back_what_admission_refused_too(merge: Sandbox) -> None:
    model = merge.fine_tuned(1)
    merge.drop("a", {**model, "layer.matrix.bias": torch.zeros(7)})
    merge.mergd("run", "--once")
    assert merge.states() == {"a": "refused"}
    merge.mergd("retry", "a")
    assert merge.states() == {"a": "settling"}
    merge.mergd("run", "--once")
    assert merge.states() == {"a": "refused"}


def test_a_setting_that_a_refusal_names_counts_after_retry(merge: Sandbox) -> None:
    merge.drop("a", {**merge.fine_tuned(1), "lm_head.extra": torch.zeros(7)})
    merge.mergd("run", "--once")
    assert codes(row_of(merge, "a")) == ["extra-weights"]
    set_in(merge.config, extra='"ignore"')
    merge.mergd("run", "--once")
    assert merge.states() == {"a": "refused"}
    assert merge.mergd("retry", "a").code == 0
    merge.mergd("run", "--once")
    assert merge.states() == {"a": "folded"}


def test_a_refused_empty_folder_says_nothing_of_other_ones(merge: Sandbox) -> None:
    for name in ("one", "two"):
        (merge.watch / name).mkdir()
    merge.mergd("run", "--once")
    assert merge.mergd("refuse", "one", "--why", "no").code == 0
    assert merge.states() == {"one": "refused", "two": "settling"}
    with History(merge.store.database) as history:
        assert [decision.content for decision in history.decided.all().made] == [str(merge.watch / "one")]
    assert row_of(merge, "two")["decisions"] == []


@pytest.mark.parametrize(
    ("request_", "ends"),
    [
        (Refuse(checkpoint="far", why="no"), True),
        (Refuse(checkpoint="a", why="it is folded"), False),
        (Refuse(checkpoint="fra", why="a slip"), False),
        (Pause(), True),
        (Rollback(), True),
        (Retry(checkpoint="far"), False),
    ],
)
def test_a_running_fold_ends_only_for_what_can_be_done(held: Sandbox, request_: AnyRequest, ends: bool) -> None:
    with History(held.store.database) as history:
        assert preempts(request_, history, task_runs=False) is ends


def test_the_next_one_is_found_without_looking_at_all_that_wait(
    merge: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in range(9):
        merge.drop(f"c{seed}", seed)
    with merge.loop() as loop:
        loop._intake.see(Directory(merge.watch).scan(None).sightings)
        looked_at = Mock(side_effect=checkpoints._checkpoint)
        monkeypatch.setattr(checkpoints, "_checkpoint", looked_at)
        names = []
        for _ in range(3):
            row = loop._work.worker.next_ready()
            assert row is not None
            names.append(row.name)
            loop._work.worker._rests.begin(row.id)
        assert (names, looked_at.call_count) == (["c0", "c1", "c2"], 1 + 2 + 3)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["approve", "a"], "a is folded, not held"),
        (["refuse", "a", "--why", "x"], "mergd remove"),
        (["retry", "a"], "a is folded, not refused"),
        (["retry", "far"], "mergd approve"),
        (["refuse", "far"], "--why"),
        (["refuse", "far", "--why", " "], "--why is empty"),
        (["refuse", "nothing", "--why", "x"], "no checkpoint is called"),
    ],
)
def test_what_cannot_be_decided_is_answered_with_what_can(held: Sandbox, words: list[str], says: str) -> None:
    ended = held.mergd(*words)
    assert ended.code == 2
    assert says in ended.err
    assert held.states() == {"a": "folded", "far": "held"}


# ------------------------------------------------------------------------------------------------- a running daemon


def test_a_daemon_carries_decisions_out_at_once(held: Sandbox) -> None:
    set_in(held.config, quiet='"0.1s"')
    with held.running("run") as daemon:
        eventually(lambda: "waiting for checkpoints" in held.mergd("status").out)
        assert "folded on the head of that moment" in held.mergd("approve", "far").out
        eventually(lambda: held.states()["far"] == "folded")
        held.drop("other", held.fine_tuned(3, FAR))
        eventually(lambda: held.states().get("other") == "held")
        assert held.mergd("refuse", "other", "--why", "no").code == 0
        assert held.mergd("retry", "other", "--json").json["daemon"] is True
        eventually(lambda: held.states()["other"] == "held")
        assert daemon.runs
    with History(held.store.database) as history:
        made = history.decided.all().made
    assert [(d.verdict, d.who.startswith(f"uid {os.getuid()} (process")) for d in made] == [
        ("approved", True),
        ("refused", True),
        ("retried", True),
    ]


def test_refusing_what_is_being_folded_ends_the_fold(tmp_path: Path) -> None:
    merge = make_merge(tmp_path, {"large.weight": torch.randn(900, 900)}, parameters={"variant": "paper"})
    merge.drop("a", 1)
    merge.drop("b", 2)
    with merge.running("run"):
        eventually(lambda: merge.states().get("b") == "folding")
        assert merge.mergd("refuse", "b", "--why", "stop").code == 0
        merge.drop("c", 3)
        eventually(lambda: merge.states().get("c") == "folded")
    assert merge.states() == {"a": "folded", "b": "refused", "c": "folded"}


# ------------------------------------------------------------------------------------------------------------ check


def all_files(merge: Sandbox) -> dict[str, str]:
    """Return the digest of every file of the state."""
    paths = [path for path in merge.state.rglob("*") if path.is_file() and not path.name.endswith(("-shm", "-wal"))]
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def with_nan(model: Model) -> Model:
    model["layer.wide.weight"][1, 2] = float("nan")
    return model


@pytest.mark.parametrize(
    ("seed", "size", "decision", "code", "found"),
    [
        (4, 0.1, "admitted", 0, []),
        (4, FAR, "held", 75, ["far-from-base"]),
        (None, 0.1, "refused", 65, ["not-finite"]),
        (1, 0.1, "known", 0, ["known-content"]),
    ],
)
def test_a_deep_check_gives_the_verdict_that_a_fold_would(
    held: Sandbox, seed: int | None, size: float, decision: str, code: int, found: list[str]
) -> None:
    model = with_nan(held.fine_tuned(5)) if seed is None else held.fine_tuned(seed, size)
    path = save_lone(held.root / "candidate.safetensors", model)
    before = all_files(held)
    checked = held.mergd("check", path, "--deep", "--json")
    assert (checked.code, checked.json["decision"]) == (code, decision), checked.err
    assert codes(checked.json) == found
    assert all_files(held) == before
    path.rename(held.watch / "candidate.safetensors")
    held.mergd("run", "--once")
    row = row_of(held, "candidate.safetensors")
    assert row["state"] == {"admitted": "folded", "known": "folded"}.get(decision, decision)
    assert codes(row) == found


def test_a_deep_check_knows_what_was_decided_and_what_was_folded_from_there(held: Sandbox) -> None:
    held.mergd("refuse", "far", "--why", "poisoned")
    assert codes(held.mergd("check", held.watch / "far", "--deep", "--json").json) == ["refused-by-hand"]
    save_lone(held.watch / "a" / "model.safetensors", held.fine_tuned(6))
    assert codes(held.mergd("check", held.watch / "a", "--deep", "--json").json) == ["changed"]


def test_without_deep_only_headers_are_read(held: Sandbox) -> None:
    assert held.mergd("check", held.watch / "far").out == "it would be admitted\n"
    assert "far-from-base" in held.mergd("check", held.watch / "far", "--deep").out


NOBODY = 65534
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")


@pytest.fixture
def of_nobody() -> Iterator[Sandbox]:
    """A merge whose daemon runs as somebody else."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        merge = make_merge(Path(folder))
        for path in (merge.state, *merge.state.rglob("*")):
            os.chown(path, NOBODY, NOBODY)
        for path in (merge.base / "model.safetensors", merge.config):
            path.chmod(0o644)
        yield merge


@as_root
def test_check_says_what_the_daemon_cannot_read(of_nobody: Sandbox) -> None:
    place = of_nobody.drop("a", 1)
    with of_nobody.running("run"):
        eventually(lambda: of_nobody.states().get("a") == "blocked")
        checked = of_nobody.mergd("check", place)
        told = f"the daemon (user {name_of(NOBODY)}) cannot read model.safetensors (mode 0600, owner {name_of(0)})"
        assert (checked.code, checked.out.splitlines()[-1]) == (77, told)
        answer = of_nobody.mergd("check", place, "--json")
        assert answer.json["daemon"]["cannot_read"] == [f"model.safetensors (mode 0600, owner {name_of(0)})"]
        place.chmod(0o700)
        assert "cannot read a (mode 0700" in of_nobody.mergd("check", place).out
        place.chmod(0o755)
        (place / "model.safetensors").chmod(0o644)
        assert of_nobody.mergd("check", place).code == 0
    assert "check" not in [verb for verb, _ in requests(of_nobody)]


def test_a_state_that_an_older_mergd_made_is_brought_up_to_date(merge: Sandbox) -> None:
    with History(merge.store.database, write=True) as history:
        before = history.pins()
        history._db.execute("delete from pins where name in ('convolutions', 'base_norms')")
    place = merge.drop("a", 1)
    ran = merge.mergd("run", "--once")
    assert ran.code == 0, ran.err
    assert merge.states() == {"a": "folded"}
    with History(merge.store.database) as history:
        assert history.pins() == before
    assert merge.mergd("check", "--deep", place).code == 0


def test_an_older_history_says_what_brings_it_up_to_date(merge: Sandbox) -> None:
    with History(merge.store.database, write=True) as history:
        history._db.execute("drop table decisions")
        history._db.execute("drop table contributions")
        history._db.execute("alter table checkpoints drop column owner")
        history._db.execute("delete from _sqlite_migrations where name like 'm005%'")
    listed = merge.mergd("list")
    assert (listed.code, len(listed.complaint)) == (69, 2)
    assert "mergd run --once" in listed.err
    merge.drop("a", 1)
    assert merge.mergd("run", "--once").code == 0
    assert merge.mergd("list").code == 0
