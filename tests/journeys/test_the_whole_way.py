"""The whole way by the real command line: checkpoints are dropped, folded, published, rolled back and folded again."""

import json
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from references.opcm_published import published_task_vectors
from safetensors.torch import load_file
from support.commands import Ended, mergd, python_m_mergd
from support.merges import Sandbox, make_merge, set_in, writable
from support.models import (
    CONFIG,
    MATRICES,
    Model,
    fine_tuned,
    load_model,
    norm,
    save_lone,
    save_model,
    save_sharded,
    task_vector,
    tiny_base,
    weight_errors,
)

from mergd.daemon.cards import WORDS
from mergd.state.lock import Lock
from mergd.state.users import name_of

SEEDS = {"a": 1, "b": 2, "c": 3, "d.safetensors": 4}  # in name order, which is the order of their folds
LOGGED = {
    "version", "parent", "cause", "checkpoint", "rule", "totals", "scale", "digest", "created_at", "head",
}  # fmt: skip
SAID = {"head", "published", "folded", "waiting", "refused", "held", "paused", "rule", "totals"}


def reference(base: Model, checkpoints: list[Model]) -> list[Model]:
    """Return the published task vectors after each checkpoint, by the transcription of the papers' recurrence."""
    floating = [name for name, tensor in base.items() if tensor.is_floating_point()]
    theta0 = {name: base[name].double() for name in floating}
    thetas = [{name: checkpoint[name].double() for name in floating} for checkpoint in checkpoints]
    return [dict(tau) for tau in published_task_vectors(theta0, thetas, MATRICES, 0.5, "block")]


def drop_four(merge: Sandbox) -> list[Model]:
    """Drop three folders and a lone file; returns their weights."""
    for name, seed in SEEDS.items():
        merge.drop(name, seed)
    return [merge.fine_tuned(seed) for seed in SEEDS.values()]


def assert_complains(ended: Ended, code: int, *parts: str) -> None:
    """Assert that a command ended with this code, in one or two lines that say this, without a traceback."""
    assert ended.code == code, ended
    assert 1 <= len(ended.complaint) <= 2, ended.err
    assert "Traceback" not in ended.err
    for part in parts:
        assert part in ended.err


# ----------------------------------------------------------------------------------------- one story, read by many


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Sandbox, Ended, Ended]]:
    """Init on an empty folder, four drops and a run, each command in an interpreter of its own."""
    merge = Sandbox(tmp_path_factory.mktemp("story"), tiny_base())
    save_model(merge.base, merge.model)
    merge.watch.mkdir()
    places = ("--base", merge.base, "--watch", merge.watch, "--state", merge.state)
    made = python_m_mergd("init", *places, "--config", merge.config, at=merge.root)
    set_in(merge.config, quiet='"0.2s"')
    drop_four(merge)
    yield merge, made, python_m_mergd("run", "--once", "-c", merge.config, at=merge.root)


@pytest.fixture
def told(story: tuple[Sandbox, Ended, Ended]) -> Sandbox:
    """The merge of the story, only to be read."""
    return story[0]


def test_init_says_what_a_version_costs_and_how_to_go_on(story: tuple[Sandbox, Ended, Ended]) -> None:
    merge, made, _ = story
    assert made.code == 0, made.err
    assert "a version takes 1.5 kB on disk" in made.out  # slots and published weights
    assert "are free" in made.out
    assert f"mergd run -c {merge.config}" in made.out


def test_run_once_folds_all_that_is_there_in_the_order_of_names(story: tuple[Sandbox, Ended, Ended]) -> None:
    merge, _, ran = story
    assert ran.code == 0, ran.err
    assert [entry["checkpoint"]["name"] for entry in reversed(merge.log())] == list(SEEDS)


def test_the_log_as_json_has_the_versions_newest_first(told: Sandbox) -> None:
    log = told.log()
    assert [entry["version"] for entry in log] == [4, 3, 2, 1]
    assert [entry["parent"] for entry in log] == [3, 2, 1, None]
    assert [entry["head"] for entry in log] == [True, False, False, False]
    assert {entry["cause"] for entry in log} == {"fold"}
    assert {entry["rule"] for entry in log} == {"opcm"}
    for entry in log:
        assert entry.keys() >= LOGGED
        assert entry["checkpoint"].keys() >= {"name", "digest", "source"}
        assert entry["totals"]["folded"] == entry["version"]
        assert len(entry["digest"]) == len(entry["checkpoint"]["digest"]) == 64
        assert entry["created_at"].endswith("Z")
    assert len({entry["digest"] for entry in log}) == len({entry["checkpoint"]["digest"] for entry in log}) == 4


def test_the_status_as_json_says_how_things_stand(told: Sandbox) -> None:
    status = told.mergd("status", "--json").json
    assert status.keys() >= SAID
    assert (status["head"], status["folded"], status["rule"], status["paused"]) == (4, 4, "opcm", None)
    assert (status["waiting"], status["refused"], status["held"]) == (0, 0, 0)
    assert status["published"] == str(told.store.model(4))
    assert status["totals"] == told.log()[0]["totals"]


def test_the_status_says_without_a_gate_that_everything_admitted_goes_live(told: Sandbox) -> None:
    assert "every checkpoint that is admitted goes live" in told.mergd("status").out


def test_files_for_readers_without_the_database_say_the_same(told: Sandbox) -> None:
    lines = [json.loads(line) for line in (told.state / "log.jsonl").read_text().splitlines()]
    assert lines == [{key: value for key, value in entry.items() if key != "files"} for entry in told.log()]
    status = json.loads((told.state / "status.json").read_text())
    assert {key: status[key] for key in SAID} == {key: told.mergd("status", "--json").json[key] for key in SAID}


def test_the_list_has_every_checkpoint_with_its_digest(told: Sandbox) -> None:
    rows = told.mergd("list", "--json").json
    assert [(row["name"], row["state"], row["in_model"]) for row in rows] == [(name, "folded", True) for name in SEEDS]
    assert [row["digest"] for row in rows] == [entry["checkpoint"]["digest"] for entry in reversed(told.log())]
    assert [row["order"] for row in rows] == [1, 2, 3, 4]


def test_show_tells_what_a_fold_did_to_each_weight(told: Sandbox) -> None:
    shown = told.mergd("show", "v2", "--json").json
    tau = task_vector(told.fine_tuned(SEEDS["b"]), told.model)
    assert shown["version"] == 2
    assert shown["weights"].keys() == tau.keys()
    for name, report in shown["weights"].items():
        assert report["task_norm"] == pytest.approx(float(tau[name].norm()), rel=1e-5)
        assert 0 <= report["survived"] <= 1
        assert (report["split_rank"] > 0) == (name in MATRICES)


def test_show_tells_a_checkpoints_story(told: Sandbox) -> None:
    shown = told.mergd("show", "b", "--json").json
    assert (shown["name"], shown["versions"]) == ("b", [2])
    assert [attempt["outcome"] for attempt in shown["attempts"]] == ["folded"]


@pytest.mark.parametrize("words", [["list"], ["log"], ["status"], ["show", "v2"], ["show", "d.safetensors"]])
def test_what_is_shown_to_people_is_plain_text(told: Sandbox, words: list[str]) -> None:
    ended = told.mergd(*words)
    assert ended.code == 0
    assert ended.out
    assert "\x1b" not in ended.out
    assert "[/" not in ended.out


def test_the_published_folder_is_an_ordinary_model_folder(told: Sandbox) -> None:
    assert os.readlink(told.store.current) == "000004"
    found = load_file(told.store.current / "model.safetensors")
    assert {name: (tensor.dtype, tensor.shape) for name, tensor in found.items()} == {
        name: (tensor.dtype, tensor.shape) for name, tensor in told.model.items()
    }
    assert json.loads((told.store.current / "config.json").read_text()) == CONFIG
    assert {path.name for path in told.store.current.iterdir()} == {"model.safetensors", "config.json", *WORDS}


def test_published_models_can_be_read_by_all_and_the_rest_by_nobody_else(told: Sandbox) -> None:
    def mode(path: Path) -> int:
        return stat.S_IMODE(path.stat().st_mode)

    public = (told.state, told.state / "models", told.store.model(4))
    private = (told.state / "versions", told.state / "versions" / "000004")
    assert [mode(folder) for folder in public] == [0o755] * 3
    assert [mode(folder) for folder in private] == [0o700] * 2
    assert mode(told.state / "drafts") == 0o711  # to the model of a draft, for gates that run as somebody else
    assert {mode(path) for path in told.store.model(4).iterdir()} == {0o444}
    assert {mode(path) for path in (told.state / "versions" / "000004").iterdir()} == {0o400}
    assert mode(told.store.database) == 0o600


@pytest.mark.parametrize("version", [1, 2, 3, 4])
def test_each_published_task_vector_is_the_papers(told: Sandbox, version: int) -> None:
    expected = reference(told.model, [told.fine_tuned(seed) for seed in SEEDS.values()])[version - 1]
    errors = weight_errors(task_vector(told.published(version), told.model), expected)
    assert max(errors.values()) < 1e-5, errors


@pytest.mark.parametrize("version", [1, 2, 3, 4])
def test_the_norm_of_what_is_published_is_the_mean_norm_of_the_task_vectors(told: Sandbox, version: int) -> None:
    taus = [task_vector(told.fine_tuned(seed), told.model) for seed in list(SEEDS.values())[:version]]
    mean = sum(map(norm, taus)) / version
    assert norm(task_vector(told.published(version), told.model)) == pytest.approx(mean, rel=1e-6)
    assert told.log()[-version]["totals"]["mean_norm"] == pytest.approx(mean, rel=1e-6)


def test_the_first_version_is_the_first_checkpoint(told: Sandbox) -> None:
    first = told.fine_tuned(SEEDS["a"])
    assert max(weight_errors(told.published(1), first).values()) < 1e-6
    assert torch.equal(told.published(4)["position_ids"], told.model["position_ids"])


def test_the_watched_folder_is_left_as_it_was(told: Sandbox) -> None:
    assert sorted(path.name for path in told.watch.iterdir()) == sorted(SEEDS)
    for name, seed in SEEDS.items():
        found = load_file(told.watch / name) if name.endswith(".safetensors") else load_model(told.watch / name)
        assert all(torch.equal(found[key], tensor) for key, tensor in told.fine_tuned(seed).items())


def test_verify_finds_nothing_wrong(told: Sandbox) -> None:
    assert told.mergd("verify").code == 0


# --------------------------------------------------------------------------------------------------------- rollback


@pytest.fixture
def folded(merge: Sandbox) -> Sandbox:
    """A merge of four checkpoints."""
    drop_four(merge)
    merge.fold_all()
    return merge


def test_rolling_back_changes_no_byte_and_moves_the_link(folded: Sandbox) -> None:
    before = {version: folded.weight_files(version) for version in (1, 2, 3, 4)}
    for words, head in ((["v1"], 1), (["3"], 3), (["head~1"], 2)):
        assert folded.mergd("rollback", *words).code == 0
        assert os.readlink(folded.store.current) == f"{head:06d}"
        assert [entry["version"] for entry in folded.log() if entry["head"]] == [head]
        assert folded.mergd("status", "--json").json["head"] == head
        assert {version: folded.weight_files(version) for version in (1, 2, 3, 4)} == before


def test_rolling_back_three_versions_brings_the_earlier_bytes_back(merge: Sandbox) -> None:
    merge.drop("a", SEEDS["a"])
    merge.fold_all()
    early = {path.name: path.read_bytes() for path in merge.store.current.iterdir()}
    for name in ("b", "c", "d.safetensors"):
        merge.drop(name, SEEDS[name])
    merge.fold_all()
    merge.mergd("rollback", "head~3")
    assert {path.name: path.read_bytes() for path in merge.store.current.iterdir()} == early


def test_a_rollback_without_a_version_goes_where_the_head_was_before(folded: Sandbox) -> None:
    heads = []
    for words in ([], [], ["v1"], []):
        heads.append(folded.mergd("rollback", "--json", *words).json["head"])
    assert heads == [3, 4, 1, 4]


def test_a_rollback_says_what_is_out_and_how_to_have_it_back(folded: Sandbox) -> None:
    ended = folded.mergd("rollback", "v1")
    assert "it was v4" in ended.out
    assert "no longer in the model: b, c, d.safetensors" in ended.out
    for command in ("fold --again d.safetensors", "fold --again c d.safetensors", "rollback v4"):
        assert f"mergd {command}\n" in ended.out


def test_the_next_fold_starts_from_where_the_head_was_rolled_back_to(folded: Sandbox) -> None:
    folded.mergd("rollback", "v2")
    folded.drop("e", 5)
    assert folded.mergd("run", "--once").code == 0
    newest = folded.log()[0]
    assert (newest["version"], newest["parent"], newest["totals"]["folded"]) == (5, 2, 3)
    expected = reference(folded.model, [folded.fine_tuned(seed) for seed in (1, 2, 5)])[-1]
    assert max(weight_errors(task_vector(folded.published(), folded.model), expected).values()) < 1e-5
    graph = folded.mergd("log").out
    assert "├" in graph
    assert graph.index("v5") < graph.index("v4") < graph.index("v3") < graph.index("v2")


def test_the_command_that_a_rollback_names_takes_out_one_checkpoint_only(folded: Sandbox) -> None:
    folded.mergd("rollback", "v1")
    ended = folded.mergd("fold", "--again", "c", "d.safetensors", "--json")
    assert ended.code == 0, ended.err
    assert [item["state"] for item in ended.json["checkpoints"]] == ["folded", "folded"]
    assert [(entry["version"], entry["parent"]) for entry in folded.log()[:2]] == [(6, 5), (5, 1)]
    expected = reference(folded.model, [folded.fine_tuned(seed) for seed in (1, 3, 4)])[-1]
    assert max(weight_errors(task_vector(folded.published(), folded.model), expected).values()) < 1e-5


def test_what_was_rolled_away_comes_back_only_with_again(folded: Sandbox) -> None:
    folded.mergd("rollback", "v3")
    assert_complains(folded.mergd("fold", "d.safetensors"), 2, "rolled away", "mergd fold --again")
    assert folded.mergd("run", "--once").code == 0
    assert len(folded.log()) == 4
    assert [row["in_model"] for row in folded.mergd("list", "--json").json] == [True, True, True, False]
    assert folded.mergd("fold", "--again", folded.watch / "d.safetensors").code == 0
    newest, *older = folded.log()
    assert (newest["version"], newest["parent"], newest["checkpoint"]["name"]) == (5, 3, "d.safetensors")
    assert newest["digest"] == older[0]["digest"]


def test_what_is_in_the_model_is_not_folded_again(folded: Sandbox) -> None:
    assert_complains(folded.mergd("fold", "--again", "b"), 2, "in the model already")
    assert len(folded.log()) == 4


def test_a_rollback_can_pause(folded: Sandbox) -> None:
    assert folded.mergd("rollback", "v1", "--pause").code == 0
    folded.drop("e", 5)
    assert folded.mergd("run", "--once").code == 0
    assert folded.mergd("status", "--json").json["head"] == 1


@pytest.mark.parametrize(
    ("version", "says"), [("v9", "no version 'v9'"), ("head~4", "before the first"), ("best", "no version 'best'")]
)
def test_a_rollback_to_no_version_is_wrong_usage(folded: Sandbox, version: str, says: str) -> None:
    assert_complains(folded.mergd("rollback", version), 2, says)


def test_a_rollback_before_the_first_fold_is_wrong_usage(merge: Sandbox) -> None:
    assert_complains(merge.mergd("rollback"), 2, "no version yet")


def test_a_rollback_to_a_version_whose_files_were_dropped_says_which_are_kept(tmp_path: Path) -> None:
    merge = make_merge(tmp_path, keep_last=1, keep_within=0)
    drop_four(merge)
    merge.fold_all()
    assert sorted(path.name for path in merge.store.models.iterdir()) == ["000003", "000004", "current"]
    assert_complains(merge.mergd("rollback", "v1"), 2, "dropped by retention", "v3, v4")
    assert [entry["version"] for entry in merge.log()] == [4, 3, 2, 1]
    assert merge.mergd("rollback", "v3").code == 0


# ----------------------------------------------------------------------------------------- the same bytes, once each


def test_the_same_checkpoints_in_the_same_order_give_the_same_bytes(
    folded: Sandbox, new_merge: Callable[..., Sandbox]
) -> None:
    other = new_merge()
    for name, seed in SEEDS.items():  # one by one, in commands of their own
        other.drop(name, seed)
        assert other.mergd("run", "--once").code == 0
    for version in (1, 2, 3, 4):
        mine, others = folded.weight_files(version), other.weight_files(version)
        assert mine.keys() == others.keys()
        assert [name for name in mine if mine[name] != others[name] and "manifest" not in name] == []
    assert [entry["digest"] for entry in folded.log()] == [entry["digest"] for entry in other.log()]


def test_another_order_is_another_merge(folded: Sandbox, new_merge: Callable[..., Sandbox]) -> None:
    other = new_merge()
    for name, seed in reversed(SEEDS.items()):
        other.drop(name, seed)
        other.fold_all()
    assert folded.log()[0]["digest"] != other.log()[0]["digest"]


def test_the_same_content_under_another_name_is_a_recorded_no_op(folded: Sandbox) -> None:
    again = folded.fine_tuned(SEEDS["b"])
    folded.drop("e", again)
    folded.drop("f.safetensors", dict(reversed(again.items())))
    save_sharded(folded.watch / "g", again)
    assert folded.mergd("run", "--once").code == 0
    assert len(folded.log()) == 4
    for row in folded.mergd("list", "--json").json[4:]:
        assert (row["state"], row["duplicate_of"]) == ("folded", "b")
        assert row["reasons"][0]["code"] == "known-content"
        assert row["digest"] == folded.log()[2]["checkpoint"]["digest"]
    assert folded.mergd("status", "--json").json["folded"] == 4
    assert folded.mergd("run", "--once").code == 0
    assert len(folded.log()) == 4


def test_the_same_content_dropped_twice_before_the_first_run_counts_once(merge: Sandbox) -> None:
    merge.drop("a", 1)
    merge.drop("b", 1)
    merge.mergd("run", "--once")
    assert [entry["checkpoint"]["name"] for entry in merge.log()] == ["a"]


def test_no_new_run_folds_anything_again(folded: Sandbox) -> None:
    for _ in range(2):
        assert folded.mergd("run", "--once").code == 0
    assert len(folded.log()) == 4


def test_a_touched_checkpoint_is_a_no_op_and_a_changed_one_is_held(folded: Sandbox) -> None:
    os.utime(folded.watch / "a" / "model.safetensors")
    save_lone(folded.watch / "b" / "model.safetensors", folded.fine_tuned(9))
    assert folded.mergd("run", "--once").code == 0
    assert len(folded.log()) == 4
    newest = {row["place"]: row for row in folded.mergd("list", "--json").json}
    assert newest[str(folded.watch / "a")]["state"] == "folded"
    held = newest[str(folded.watch / "b")]
    assert (held["state"], held["reasons"][0]["code"]) == ("held", "changed")
    assert f"mergd approve {folded.watch / 'b'}" in held["reasons"][0]["next_step"]
    assert folded.mergd("approve", folded.watch / "b").code == 0
    assert folded.mergd("run", "--once").code == 0
    assert folded.log()[0]["totals"]["folded"] == 5


# ----------------------------------------------------------------------------------------------------------- refusals


def with_nan(model: Model) -> Model:
    model["layer.wide.weight"][1, 2] = float("nan")
    return model


def without(model: Model, name: str) -> Model:
    del model[name]
    return model


Spoil = Callable[[Sandbox, Path], None]
SPOILED: dict[str, tuple[str, Spoil]] = {
    "wrong-shape": (
        "shape",
        lambda m, at: void(save_model(at, m.fine_tuned(1) | {"layer.matrix.bias": torch.zeros(7)})),
    ),
    "missing": ("missing-weights", lambda m, at: void(save_model(at, without(m.fine_tuned(1), "layer.matrix.bias")))),
    "extra": ("extra-weights", lambda m, at: void(save_model(at, m.fine_tuned(1) | {"head.weight": torch.zeros(2)}))),
    "integers": (
        "dtype",
        lambda m, at: void(save_model(at, m.fine_tuned(1) | {"layer.matrix.bias": torch.zeros(6, dtype=torch.int8)})),
    ),
    "nan": ("not-finite", lambda m, at: void(save_model(at, with_nan(m.fine_tuned(1))))),
    "garbage.safetensors": ("unreadable", lambda m, at: void(at.write_bytes(b"\x40" + bytes(7) + b"{garbage" * 8))),
    "huge-header.safetensors": ("unreadable", lambda m, at: void(at.write_bytes(b"\xff" * 64))),
}


def void(value: object) -> None:
    """Drop a value, so that a lambda returns none."""


@pytest.fixture(scope="module")
def spoiled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Sandbox, Ended]:
    """A run over spoiled checkpoints, with a good one before and one after."""
    merge = make_merge(tmp_path_factory.mktemp("spoiled"))
    merge.drop("a-good", 1)
    for name, (_, spoil) in SPOILED.items():
        spoil(merge, merge.watch / name)
    (merge.watch / "short.safetensors").write_bytes((merge.watch / "nan" / "model.safetensors").read_bytes()[:-10])
    merge.drop("z-good", 2)
    return merge, merge.mergd("run", "--once")


@pytest.mark.parametrize("name", SPOILED)
def test_a_refused_checkpoint_is_recorded_with_what_to_do(spoiled: tuple[Sandbox, Ended], name: str) -> None:
    rows = {row["name"]: row for row in spoiled[0].mergd("list", "--json").json}
    assert rows[name]["state"] == "refused"
    assert [reason["code"] for reason in rows[name]["reasons"]] == [SPOILED[name][0]]
    assert all(rows[name]["reasons"][0][key] for key in ("found", "expected", "next_step"))


def test_the_run_goes_on_after_refusals_and_ends_well(spoiled: tuple[Sandbox, Ended]) -> None:
    merge, ran = spoiled
    assert ran.code == 0, ran.err
    assert "Traceback" not in ran.err
    assert [entry["checkpoint"]["name"] for entry in merge.log()] == ["z-good", "a-good"]
    status = merge.mergd("status", "--json").json
    assert (status["folded"], status["refused"], status["settling"]) == (2, len(SPOILED), 1)
    expected = reference(merge.model, [merge.fine_tuned(1), merge.fine_tuned(2)])[-1]
    assert max(weight_errors(task_vector(merge.published(), merge.model), expected).values()) < 1e-5


def test_a_truncated_checkpoint_waits_and_says_for_what(spoiled: tuple[Sandbox, Ended]) -> None:
    row = next(row for row in spoiled[0].mergd("list", "--json").json if row["name"] == "short.safetensors")
    assert row["state"] == "settling"
    assert "short.safetensors, which is missing" in row["waits_for"]


def test_asking_for_a_refused_checkpoint_refuses_it_again(spoiled: tuple[Sandbox, Ended]) -> None:
    merge, _ = spoiled
    assert_complains(merge.mergd("fold", "wrong-shape"), 65, "shape", "layer.matrix.bias")
    assert_complains(merge.mergd("fold", "short.safetensors"), 75, "is missing")


@pytest.mark.parametrize(("name", "code"), [("a-good", 0), ("wrong-shape", 65), ("short.safetensors", 75)])
def test_check_says_what_admission_would(spoiled: tuple[Sandbox, Ended], name: str, code: int) -> None:
    merge, _ = spoiled
    for extra in ([], ["--json"]):
        assert merge.mergd("check", merge.watch / name, *extra).code == code
    if code:
        answer = merge.mergd("check", merge.watch / name, "--json").json
        assert answer["reasons"] or answer["waits_for"]


def test_strict_turns_a_refusal_into_an_exit_code(merge: Sandbox) -> None:
    merge.drop("a", 1)
    assert merge.mergd("run", "--once", "--strict").code == 0
    merge.drop("b", with_nan(merge.fine_tuned(2)))
    assert merge.mergd("run", "--once", "--strict").code == 65
    assert merge.mergd("run", "--once", "--strict").code == 0  # refused before, in another life


def test_a_refused_checkpoint_that_was_mended_is_folded(merge: Sandbox) -> None:
    merge.drop("a", without(merge.fine_tuned(1), "layer.matrix.bias"))
    merge.mergd("run", "--once")
    assert merge.states() == {"a": "refused"}
    save_model(merge.watch / "a", merge.fine_tuned(1))
    merge.mergd("run", "--once")
    assert merge.states() == {"a": "folded"}


@pytest.mark.parametrize("name", [b"two\nlines", b"\x1b[31mred", b"[bold]markup", b"--again", b"7"], ids=repr)
def test_no_name_of_a_checkpoint_stops_the_way(merge: Sandbox, name: bytes) -> None:
    os.rename(save_model(merge.root / "aside", merge.fine_tuned(1)), os.fsencode(merge.watch) + b"/" + name)
    merge.drop("z", 2)
    ran = merge.mergd("run", "--once")
    assert ran.code == 0, ran.err
    assert not ran.complaint
    assert len(merge.log()) == 2
    for command in ("list", "log", "status"):
        shown = merge.mergd(command)
        assert shown.code == 0, shown.err
        assert "\x1b" not in shown.out
    rows = [line for line in merge.mergd("list").out.splitlines() if line.strip()]
    assert len(rows) <= 2 + 2  # the heading's, and one for each checkpoint


def test_a_name_that_is_no_text_is_passed_over_with_a_warning(merge: Sandbox) -> None:
    os.rename(save_model(merge.root / "aside", merge.fine_tuned(1)), os.fsencode(merge.watch) + b"/bad\xff")
    merge.drop("z", 2)
    ran = merge.mergd("run", "--once")
    assert ran.code == 0, ran.err
    assert "its name is no UTF-8" in ran.err
    assert merge.states() == {"z": "folded"}


# ------------------------------------------------------------------------------------------- what lies there at init


@pytest.mark.parametrize(("existing", "state"), [("hold", "held"), ("fold", "settling"), ("ignore", "refused")])
def test_what_lies_there_at_init_is_taken_as_existing_says(tmp_path: Path, existing: str, state: str) -> None:
    merge = Sandbox(tmp_path, tiny_base())
    save_model(merge.base, merge.model)
    for name in ("b", "a"):
        save_model(merge.watch / name, merge.fine_tuned(SEEDS[name]))
    places = ("--base", merge.base, "--watch", merge.watch, "--state", merge.state)
    made = mergd("init", *places, "--existing", existing, "--config", merge.config, at=tmp_path)
    assert made.code == 0, made.err
    assert f"a, {state}\n" in made.out
    assert merge.states() == {"a": state, "b": state}
    set_in(merge.config, quiet="0")
    merge.drop("c", SEEDS["c"])
    assert merge.mergd("run", "--once").code == 0
    names = [entry["checkpoint"]["name"] for entry in reversed(merge.log())]
    assert names == (["a", "b", "c"] if existing == "fold" else ["c"])
    if existing != "fold":
        assert merge.mergd("fold", "b").code == 0  # a person decides
        assert merge.log()[0]["checkpoint"]["name"] == "b"


@pytest.mark.parametrize("there", ["state", "config"])
def test_init_overwrites_nothing(folded: Sandbox, there: str) -> None:
    before = folded.config.read_text(), folded.store.database.read_bytes()
    other = folded.root / "other"
    config, state = (folded.config, other) if there == "config" else (folded.root / "other.toml", folded.state)
    places = ("--base", folded.base, "--watch", folded.watch, "--state", state)
    assert_complains(mergd("init", *places, "--config", config, at=folded.root), 78)
    assert (folded.config.read_text(), folded.store.database.read_bytes()) == before
    assert not other.exists()
    assert not (folded.root / "other.toml").exists()


def test_a_failed_init_leaves_nothing_that_hinders_the_next(tmp_path: Path) -> None:
    merge = Sandbox(tmp_path, tiny_base())
    merge.watch.mkdir()
    places = ("--base", merge.base, "--watch", merge.watch, "--state", merge.state, "--config", merge.config)
    assert_complains(mergd("init", *places, at=tmp_path), 78, "base")
    assert_complains(mergd("init", *places, "--rule", "no-such", at=tmp_path), 78, "no-such")
    save_model(merge.base, merge.model)
    assert mergd("init", *places, at=tmp_path).code == 0


# ----------------------------------------------------------------------------------------------- pausing, and orders


def test_a_pause_holds_over_restarts_until_it_is_resumed(merge: Sandbox) -> None:
    merge.drop("a", 1)
    merge.fold_all()
    assert merge.mergd("pause", "--why", "the evaluation runs").code == 0
    merge.drop("b", 2)
    for _ in range(2):
        assert merge.mergd("run", "--once").code == 0
        assert len(merge.log()) == 1
    assert merge.states()["b"] == "ready"  # scanning goes on
    assert merge.mergd("status", "--json").json["paused"]["why"] == "the evaluation runs"
    assert "the evaluation runs" in merge.mergd("status").out
    assert_complains(merge.mergd("fold", "b"), 75, "paused", "mergd resume")
    assert merge.mergd("rollback", "v1").code == 0
    assert "resumed" in merge.mergd("resume").out
    assert "not paused" in merge.mergd("resume").out
    merge.mergd("run", "--once")
    assert len(merge.log()) == 2


def test_the_order_is_that_of_being_first_seen_ready(merge: Sandbox) -> None:
    merge.mergd("pause")
    for name in ("c", "b", "a"):
        merge.drop(name, SEEDS[name])
        merge.mergd("run", "--once")
    merge.mergd("resume")
    merge.mergd("run", "--once")
    assert [entry["checkpoint"]["name"] for entry in reversed(merge.log())] == ["c", "b", "a"]


def test_fold_takes_what_it_is_given_first_and_in_that_order(merge: Sandbox) -> None:
    for name in ("a", "b", "c"):
        merge.drop(name, SEEDS[name])
    elsewhere = save_model(merge.root / "elsewhere", merge.fine_tuned(7))
    assert merge.mergd("fold", merge.watch / "c", elsewhere, "--json").json["head"] == 2
    merge.mergd("run", "--once")
    assert [entry["checkpoint"]["name"] for entry in reversed(merge.log())] == ["c", "elsewhere", "a", "b"]


def test_fold_queues_nothing_unless_all_can_be(merge: Sandbox) -> None:
    merge.drop("a", 1)
    merge.drop("b", without(merge.fine_tuned(2), "layer.matrix.bias"))
    assert_complains(merge.mergd("fold", merge.watch / "a", merge.watch / "b"), 65, "missing-weights")
    assert merge.log() == []


# ------------------------------------------------------------------------------------------------ what init has pinned


@pytest.mark.parametrize(
    ("key", "value", "was"),
    [
        ("rule", '"average"', "opcm"),
        ("alpha", "0.25", "0.5"),
        ("variant", '"paper"', "block"),
        ("out_dtype", '"bfloat16"', "base"),
        ("threads", "3", "1"),
    ],
)
def test_a_setting_that_differs_from_what_init_pinned_names_both_values(
    merge: Sandbox, key: str, value: str, was: str
) -> None:
    set_in(merge.config, **{key: value})
    if key == "rule":
        text = merge.config.read_text()
        merge.config.write_text(text[: text.index("[parameters]")])
    assert_complains(merge.mergd("run", "--once"), 78, value.strip('"'), was)


def test_another_base_model_is_refused_and_the_same_one_touched_is_not(folded: Sandbox) -> None:
    os.utime(folded.base / "model.safetensors")
    assert folded.mergd("run", "--once").code == 0
    copy = shutil.copytree(folded.base, folded.root / "copy")
    text = folded.config.read_text()
    folded.config.write_text(text.replace(str(folded.base), str(copy)))
    assert_complains(folded.mergd("run", "--once"), 78, str(folded.base), str(copy))
    folded.config.write_text(text)
    save_model(folded.base, tiny_base(seed=1))
    assert_complains(folded.mergd("run", "--once"), 78, "digest")
    assert len(folded.log()) == 4


# ------------------------------------------------------------------------------------------ errors, and who can mend it


def test_a_second_process_is_told_who_holds_the_state(folded: Sandbox) -> None:
    lock = Lock(folded.store.lock)
    lock.take("a backup")
    try:
        for words in (["run", "--once"], ["run"], ["rollback", "v1"], ["pause"], ["fold", "a"]):
            assert_complains(folded.mergd(*words), 75, "a backup", str(os.getpid()))
        assert folded.mergd("status", "--json").json["head"] == 4  # reading commands go on
    finally:
        lock.release()


def test_damaged_files_are_found_and_nothing_is_written_over_them(folded: Sandbox) -> None:
    path = folded.store.model(3) / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    writable(path).write_bytes(data)
    ended = folded.mergd("verify")
    assert ended.code == 74
    assert "models/000003/model.safetensors" in ended.err
    assert folded.mergd("verify", "v4").code == 0
    path.write_bytes(data[:-8])
    assert_complains(folded.mergd("rollback", "v3"), 74, "v3")
    (folded.store.model(4) / "model.safetensors").unlink()
    folded.drop("e", 5)
    assert_complains(folded.mergd("run", "--once"), 74, "v4")
    assert len(folded.log()) == 4
    assert folded.mergd("rollback", "v2").code == 0  # the way out that the hint names


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["check"], 2, "mergd verify"),
        (["check", "nowhere"], 2, "no checkpoint at nowhere"),
        (["show", "nothing"], 2, "no checkpoint is called 'nothing'"),
        (["fold", "nothing"], 2, "no checkpoint is called 'nothing'"),
        (["verify", "v9"], 2, "no version 'v9'"),
    ],
)
def test_wrong_words_are_answered_in_two_lines(merge: Sandbox, words: list[str], code: int, says: str) -> None:
    assert_complains(merge.mergd(*words), code, says)


@pytest.mark.parametrize("words", [["nonsense"], ["run", "--bogus"], ["init"], ["show"], ["init", "--existing", "x"]])
def test_wrong_usage_is_answered_in_two_lines(tmp_path: Path, words: list[str]) -> None:
    assert_complains(mergd(*words, at=tmp_path), 2)


@pytest.mark.parametrize("command", ["run", "status", "log", "list", "pause"])
def test_without_a_configuration_every_command_says_where_it_looked(tmp_path: Path, command: str) -> None:
    assert_complains(mergd(command, "-c", tmp_path / "no.toml", at=tmp_path), 78, "no.toml", "mergd init")


def test_a_state_that_is_gone_is_named(merge: Sandbox) -> None:
    shutil.rmtree(merge.state)
    for command in ("run", "status", "log", "list", "pause"):
        assert_complains(merge.mergd(command), 78, str(merge.state))


def test_a_broken_configuration_is_answered_in_two_lines(merge: Sandbox) -> None:
    merge.config.write_text("base_model = \n")
    assert_complains(merge.mergd("status"), 78, "no TOML")
    merge.config.write_text('quiet = "soon"\nbase_model = "x"\nwatch = "/w"\nstate = "/s"\n')
    assert_complains(merge.mergd("status"), 78, "quiet")


@pytest.mark.parametrize(
    "words", [["list", "--json"], ["log", "--json"], ["status", "--json"], ["list"], ["log"], ["status"]]
)
def test_an_empty_merge_can_be_looked_at(merge: Sandbox, words: list[str]) -> None:
    ended = merge.mergd(*words)
    assert ended.code == 0, ended.err
    if words[-1] == "--json":
        assert ended.json == [] or ended.json["head"] is None


@pytest.mark.parametrize("command", ["init", "run", "check", "fold", "list", "status", "log", "show", "rollback",
                                     "pause", "resume", "verify", "rebuild"])  # fmt: skip
def test_every_command_has_help_that_teaches(tmp_path: Path, command: str) -> None:
    ended = mergd(command, "--help", at=tmp_path)
    assert ended.code == 0
    assert f"mergd {command}" in ended.out
    assert len(ended.out.splitlines()) > 5


def test_status_check_is_for_health_probes(folded: Sandbox) -> None:
    ended = folded.mergd("status", "--check")
    assert (ended.code, ended.out, ended.err) == (1, "", "")  # no daemon runs


def test_every_other_rule_goes_the_same_way(tmp_path: Path) -> None:
    taus = [task_vector(fine_tuned(tiny_base(), seed), tiny_base()) for seed in SEEDS.values()]
    for rule, factor in (("average", 1 / 4), ("task_arithmetic", 0.3)):
        merge = make_merge(tmp_path / rule, rule=rule)
        drop_four(merge)
        assert merge.mergd("run", "--once").code == 0
        expected = {name: factor * torch.stack([tau[name] for tau in taus]).sum(0) for name in taus[0]}
        assert max(weight_errors(task_vector(merge.published(), merge.model), expected).values()) < 1e-5


# --------------------------------------------------------------------------------------------------- run by root

NOBODY = 65534
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")


@pytest.fixture
def of_nobody() -> Iterator[Sandbox]:
    """A merge whose state belongs to somebody who is not root, where that one can get at it."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        merge = make_merge(Path(folder))
        merge.drop("a", 1)
        give(merge.root, NOBODY)
        for place in (merge.root, merge.config):
            os.chown(place, 0, 0)
        yield merge


def give(place: Path, owner: int) -> None:
    """Let a folder and all in it belong to a user."""
    for path in (place, *place.rglob("*")):
        os.chown(path, owner, owner, follow_symlinks=False)
        if path.suffix == ".safetensors":
            path.chmod(0o644)


@as_root
@pytest.mark.parametrize("words", [["run", "--once"], ["fold", "a"], ["pause"]])
def test_root_becomes_the_states_owner_before_it_works(of_nobody: Sandbox, words: list[str]) -> None:
    if words[0] == "fold":
        words = ["fold", str(of_nobody.watch / "a")]
    ended = of_nobody.mergd(*words)
    assert ended.code == 0, ended.err
    assert {path.lstat().st_uid for path in of_nobody.state.rglob("*")} == {NOBODY}


@as_root
def test_a_folder_that_may_not_be_entered_is_blocked_and_the_others_go_on(of_nobody: Sandbox) -> None:
    place = of_nobody.drop("locked", 2)
    place.chmod(0o700)
    ended = of_nobody.mergd("run", "--once")
    assert ended.code == 0, ended.err
    assert of_nobody.states() == {"a": "folded", "locked": "blocked"}
    give(place, NOBODY)
    assert of_nobody.mergd("run", "--once").code == 0
    assert of_nobody.states() == {"a": "folded", "locked": "folded"}


@as_root
def test_a_file_that_may_not_be_read_says_whose_it_is(of_nobody: Sandbox) -> None:
    place = of_nobody.drop("private.safetensors", 2)
    place.chmod(0o600)
    assert of_nobody.mergd("run", "--once").code == 0
    row = next(row for row in of_nobody.mergd("list", "--json").json if row["name"] == "private.safetensors")
    assert row["state"] == "blocked"
    assert f"mode 0600, owner {name_of(0)}" in row["reasons"][0]["found"]
