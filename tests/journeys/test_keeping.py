"""What is kept, by the real command line: tags, what a flood may not drop, `mergd gc`, and the disk budget."""

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from support.commands import Ended, eventually, mergd
from support.merges import NO_LIMITS, Sandbox, make_merge, set_in
from support.models import tiny_base

from mergd.daemon.retention import Keep
from mergd.state.store import disk_bytes
from mergd.state.wording import size


@pytest.fixture
def folded(tmp_path: Path) -> Sandbox:
    """Five versions in a line, all kept."""
    merge = make_merge(tmp_path, limits=NO_LIMITS)
    drop(merge, range(1, 6))
    merge.fold_all()
    return merge


def drop(merge: Sandbox, seeds: range) -> None:
    for seed in seeds:
        merge.drop(f"seed-{seed:02d}", seed)


def done(ended: Ended) -> Ended:
    assert ended.code == 0, ended.err
    return ended


def on_disk(merge: Sandbox) -> tuple[list[int], list[int]]:
    """Return the numbers of the versions whose models, and of those whose slots lie there."""
    models = sorted(int(path.name) for path in merge.store.models.glob("0*"))
    return models, sorted({int(path.parent.name) for path in merge.store.versions.glob("0*/slots-*")})


def rows(merge: Sandbox, query: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(merge.store.database)) as db:
        return db.execute(query).fetchall()


def bytes_of_versions(merge: Sandbox) -> int:
    """Return what the files of slots and models take."""
    folders = (merge.store.versions, merge.store.models)
    return disk_bytes(path for folder in folders for path in folder.rglob("*") if path.is_file())


# -------------------------------------------------------------------------------------------------------------- tags


@pytest.fixture(params=["alone", "with a daemon"])
def asked(request: pytest.FixtureRequest, folded: Sandbox) -> Any:
    """The five versions, with commands that do the work themselves, and that ask a daemon."""
    if request.param == "alone":
        yield folded
        return
    with folded.running("run") as daemon:
        eventually(lambda: "watching" in daemon.err)
        yield folded


def test_a_tag_is_given_listed_shown_moved_and_taken_away(asked: Sandbox) -> None:
    assert done(asked.mergd("tag")).out.startswith("no version has a tag")
    assert "v5 is good" in done(asked.mergd("tag", "good")).out
    assert done(asked.mergd("tag", "stable/1.0", "v2", "--json")).json == {
        "tag": "stable/1.0", "version": 2, "before": None, "daemon": asked.mergd("status", "--json").json["daemon"] is not None,
    }  # fmt: skip
    listed = done(asked.mergd("tag", "--json")).json
    assert [(tag["tag"], tag["version"], tag["who"].split()[0]) for tag in listed] == [
        ("good", 5, "uid"), ("stable/1.0", 2, "uid")]  # fmt: skip
    assert [entry["tags"] for entry in asked.log()] == [["good"], [], [], ["stable/1.0"], []]
    lines = [json.loads(line) for line in (asked.state / "log.jsonl").read_text().splitlines()]
    assert lines == [{key: value for key, value in entry.items() if key != "files"} for entry in asked.log()]
    assert "good" in done(asked.mergd("log")).out.splitlines()[0]
    assert "stable/1.0" in done(asked.mergd("show", "v2")).out

    refused = asked.mergd("tag", "good", "v3")
    assert (refused.code, "good is v5 already" in refused.err) == (2, True)
    assert "(it was v5)" in done(asked.mergd("tag", "--force", "good", "stable/1.0")).out
    assert asked.log()[3]["tags"] == ["good", "stable/1.0"]
    assert done(asked.mergd("show", "good", "--json")).json["version"] == 2
    assert done(asked.mergd("verify", "good")).code == 0
    assert done(asked.mergd("rollback", "good", "--json")).json["head"] == 2

    assert "still kept: " in done(asked.mergd("tag", "-d", "good")).out
    assert asked.mergd("tag", "-d", "good").code == 2
    assert asked.mergd("rollback", "good").code == 2
    assert [tag["tag"] for tag in done(asked.mergd("tag", "--json")).json] == ["stable/1.0"]


def test_each_request_for_a_tag_leaves_one_row(asked: Sandbox) -> None:
    asked.mergd("tag", "good", "v3")
    asked.mergd("tag", "good", "v4")
    asked.mergd("tag", "--delete", "good")
    asked.mergd("tag")
    asked.mergd("gc", "-n")
    asked.mergd("gc")
    found = rows(asked, "select verb, arguments, answer from requests where verb != 'fold' order by id")
    assert [(verb, json.loads(arguments), answer.split(":")[0]) for verb, arguments, answer in found] == [
        ("tag", {"name": "good", "version": "v3", "force": False}, "done"),
        ("tag", {"name": "good", "version": "v4", "force": False}, "error"),
        ("untag", {"name": "good"}, "done"),
        ("gc", {}, "done"),
    ]


@pytest.mark.parametrize(
    "words", [["-d"], ["--force"], ["-d", "good", "v3"], ["v7"], ["../good"], ["good", "v9"], ["good", "other"]], ids=" ".join
)  # fmt: skip
def test_a_tag_that_cannot_be_is_wrong_usage(folded: Sandbox, words: list[str]) -> None:
    ended = folded.mergd("tag", *words)
    assert ended.code == 2, ended
    assert len(ended.complaint) == 2
    assert rows(folded, "select * from tags") == []


# -------------------------------------------------------------------------------------------------------------- flood


def test_what_people_chose_outlives_a_flood_with_the_same_bytes(tmp_path: Path) -> None:
    merge = make_merge(tmp_path, keep_last=2, keep_within=0, limits=NO_LIMITS)
    drop(merge, range(1, 3))
    merge.fold_all()
    done(merge.mergd("tag", "good", "v1"))
    drop(merge, range(3, 6))
    merge.fold_all()
    assert on_disk(merge)[0] == [1, 4, 5]
    done(merge.mergd("rollback", "v4"))  # from v5
    chosen = {number: merge.weight_files(number) for number in (1, 4, 5)}

    drop(merge, range(6, 36))
    most = []
    with merge.running("run"):
        while merge.states().get("seed-35") != "folded":
            most.append(len(on_disk(merge)[0]))
        status = merge.mergd("status", "--json").json
        assert (status["head"], status["versions"]["all"]) == (35, 35)
        eventually(lambda: on_disk(merge) == ([1, 4, 5, 34, 35], [1, 4, 5, 34, 35]))
    assert {number: merge.weight_files(number) for number in chosen} == chosen
    assert max(most) <= Keep(last=2).most(tags=1)[0] + 1
    done(merge.mergd("verify"))
    for number, name in ((1, "good"), (5, "v5"), (4, "v4")):
        assert done(merge.mergd("rollback", name, "--json")).json["head"] == number
        assert {name: chosen[number][name] for name in merge.weight_files(number)} == chosen[number]


# ----------------------------------------------------------------------------------------------------------------- gc


def test_a_dry_gc_says_what_gc_then_does_and_changes_nothing(folded: Sandbox) -> None:
    done(folded.mergd("tag", "good", "v1"))
    set_in(folded.config, keep_last="3", keep_within="0", keep_slots="1")
    before, sizes = on_disk(folded), bytes_of_versions(folded)
    history = rows(folded, "select * from versions"), rows(folded, "select * from requests")
    said = done(folded.mergd("gc", "-n", "--json")).json
    shown = done(folded.mergd("gc", "-n")).out
    assert (on_disk(folded), bytes_of_versions(folded)) == (before, sizes)
    assert (rows(folded, "select * from versions"), rows(folded, "select * from requests")) == history

    did = done(folded.mergd("gc", "--json")).json
    assert did["versions"] == said["versions"]
    assert did["freed"] == said["freed"] == sizes - bytes_of_versions(folded) > 0
    stays = {
        part: sorted(entry["version"] for entry in said["versions"] if entry[part]["kept_for"])
        for part in ("model", "slots")
    }
    assert on_disk(folded) == (stays["model"], stays["slots"]) == ([1, 3, 4, 5], [4, 5])
    assert [(v.number, v.model_kept, v.slots_kept) for v in folded.versions()] == [
        (1, True, False), (2, False, False), (3, True, False), (4, True, True), (5, True, True)]  # fmt: skip
    kept = {entry["version"]: entry["model"]["kept_for"] for entry in said["versions"]}
    assert (kept[1], kept[2], kept[5]) == (["tag good"], [], ["the head", "keep_last"])
    assert "kept: tag good" in shown
    assert shown.count("would be dropped") == 4

    again = done(folded.mergd("gc")).out
    assert again.startswith("0 B freed")
    done(folded.mergd("verify"))


def test_gc_asks_the_daemon_which_knows_what_it_was_started_with(folded: Sandbox) -> None:
    set_in(folded.config, keep_last="1", keep_within="0")
    with folded.running("run") as daemon:
        eventually(lambda: "watching" in daemon.err)
        assert on_disk(folded)[0] == [4, 5]
        done(folded.mergd("tag", "good", "v4"))
        answer = done(folded.mergd("gc", "--json")).json
    assert (answer["daemon"], answer["freed"], len(answer["versions"])) == (True, 0, 2)


def test_a_head_that_keeps_no_slots_gets_them_back_before_the_next_fold(tmp_path: Path) -> None:
    merge = make_merge(tmp_path, keep_last=4, keep_within=0, keep_slots=1, limits=NO_LIMITS)
    drop(merge, range(1, 3))
    merge.fold_all()
    before = merge.weight_files(2)
    drop(merge, range(3, 6))
    merge.fold_all()
    assert on_disk(merge) == ([2, 3, 4, 5], [4, 5])
    assert "made once more before the next fold" in done(merge.mergd("rollback", "v2")).out
    drop(merge, range(6, 7))
    merge.fold_all()
    assert (merge.states()["seed-06"], merge.versions()[-1].parent) == ("folded", 2)
    assert merge.weight_files(2) == before
    assert on_disk(merge) == ([2, 3, 4, 5, 6], [2, 5, 6])


def test_what_was_replayed_is_kept_by_its_tag(folded: Sandbox) -> None:
    before = folded.weight_files(1)
    set_in(folded.config, keep_last="2", keep_within="0")
    done(folded.mergd("gc"))
    refused = folded.mergd("tag", "good", "v1")
    assert (refused.code, "mergd replay v1" in refused.err) == (2, True)
    done(folded.mergd("replay", "v1"))
    assert folded.weight_files(1) == before
    assert [tag["tag"] for tag in done(folded.mergd("tag", "--json")).json] == ["replayed-1"]
    done(folded.mergd("tag", "good", "replayed-1"))
    done(folded.mergd("tag", "-d", "replayed-1"))
    done(folded.mergd("gc"))
    assert on_disk(folded) == ([1, 4, 5], [1, 4, 5])
    done(folded.mergd("tag", "-d", "good"))
    done(folded.mergd("gc"))
    assert on_disk(folded) == ([4, 5], [4, 5])


# ------------------------------------------------------------------------------------------------------------- budget


def test_a_full_budget_pauses_with_the_numbers_and_goes_on_by_itself(tmp_path: Path) -> None:
    large = tiny_base() | {"large.weight": torch.randn(512, 512)}  # beside which the history's own files are small
    merge = make_merge(tmp_path, large, rule="average", keep_last=1, keep_within=0, limits=NO_LIMITS)
    for seed in (1, 2, 3):
        drop(merge, range(seed, seed + 1))
        merge.fold_all()
        done(merge.mergd("tag", f"t{seed}"))
    used = merge.used()
    budget = used + merge.store.takes(3) // 2
    set_in(merge.config, disk=str(budget))
    chosen = {number: merge.weight_files(number) for number in (1, 2, 3)}
    drop(merge, range(4, 8))

    once = merge.mergd("run", "--once")
    assert (once.code, "disk full" in once.complaint[0]) == (69, True)
    with merge.running("run") as daemon:
        eventually(lambda: "watching" in daemon.err)
        eventually(lambda: merge.mergd("status", "--json").json["trouble"])
        status = merge.mergd("status", "--json").json
        assert status["trouble"].startswith("paused: disk full: a version needs ")
        assert f"{budget:,}" in status["trouble"]
        assert (status["waiting"], status["head"], status["budget"]) == (4, 3, budget)
        assert merge.mergd("status", "--check").code == 1
        assert " of " in done(merge.mergd("status")).out.split("disk: ")[-1]
        assert {number: merge.weight_files(number) for number in chosen} == chosen
        assert on_disk(merge)[0] == [1, 2, 3]

        done(merge.mergd("tag", "-d", "t1"))
        eventually(lambda: merge.states()["seed-04"] == "folded")  # in the room of v1; then it is full again
        eventually(lambda: merge.mergd("status", "--json").json["trouble"])
        assert on_disk(merge)[0] == [2, 3, 4]
        done(merge.mergd("tag", "-d", "t2"))
        done(merge.mergd("tag", "-d", "t3"))
        eventually(lambda: merge.states()["seed-07"] == "folded")
        assert merge.mergd("status", "--json").json["trouble"] == ""
    assert merge.used() <= budget
    assert on_disk(merge)[0] == [6, 7]


def test_init_says_what_the_kept_versions_take_and_what_the_budget_is(merge: Sandbox, tmp_path: Path) -> None:
    places = ("--base", merge.base, "--watch", merge.watch, "--state", tmp_path / "s", "--config", tmp_path / "c.toml")
    kept = ("--set", "keep_last=3", "--set", "keep_slots=2", "--set", "disk=1GB")
    said = done(mergd("init", *places, *kept, at=merge.root)).out
    model = sum(weight.numel() * weight.element_size() for weight in merge.model.values())
    model += (merge.base / "config.json").stat().st_size
    slots = 4 * sum(weight.numel() for weight in merge.model.values() if weight.is_floating_point())
    assert f"a version takes {size(model + slots)} on disk ({size(slots)} of it slots)" in said
    assert f"the newest 3 are kept: {size(4 * model + 3 * slots)} with the one being folded;" in said
    assert "; the setting disk allows 1.0 GB" in said
