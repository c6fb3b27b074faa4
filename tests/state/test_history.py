"""The history: a fold becomes true all at once or not at all, and nothing that was written is lost or invented."""

import itertools
import os
import sqlite3
import threading
from array import array
from collections.abc import Callable, Iterator
from dataclasses import astuple, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from sqlite_utils import Database

from mergd.state.errors import Busy, Damaged, Misconfigured
from mergd.state.history import History
from mergd.state.migrations import migrations
from mergd.state.records import (
    Checkpoint,
    Contribution,
    FileStamp,
    Move,
    Reason,
    Sighting,
    Totals,
    Verdict,
    Version,
    WeightReport,
)

DIGEST = "{:064x}".format
REASON = Reason("code", "found", "expected", "next")
REPORTS = [WeightReport(0.1, 2.5, 3.0, 0.75), WeightReport(1e-30, 1e30, 0.0, 1 / 3, -0.7)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "mergd.db"


@pytest.fixture
def history(path: Path) -> Iterator[History]:
    with History(path, write=True) as history:
        yield history


def sighting(name: str, inode: int = 1) -> Sighting:
    return Sighting("directory", f"/watch/{name}", name, (FileStamp("model.safetensors", 1, inode, 10, 1, 1),))


def ready(history: History, name: str) -> Checkpoint:
    """Return a checkpoint that waits for its fold."""
    return history.checkpoints.make_ready(history.checkpoints.add(sighting(name)).id)


def version(number: int, parent: int | None, checkpoint: int) -> Version:
    return Version(
        number, parent, "fold", checkpoint, "opcm", Totals(number, float(number), 0.1 + number, 1 / 3), 0.7,
        DIGEST(number), "2026-01-01T00:00:00.000Z", {"folding": 1.25}, 10, 20,
    )  # fmt: skip


def commit(history: History, number: int, parent: int | None, name: str, *hooks: str) -> Move:
    """Fold a checkpoint, whose digest is made from its version's number."""
    row = ready(history, name)
    attempt = history.checkpoints.begin_attempt(row.id)
    return history.commit_fold(version(number, parent, row.id), DIGEST(number), REPORTS, attempt, "a test", hooks)


def everything(path: Path) -> dict[str, list[Any]]:
    """Return every row of every table, as another process reads it."""
    with sqlite3.connect(path) as db:
        tables = [name for (name,) in db.execute("select name from sqlite_master where type = 'table'")]
        found = {name: db.execute(f'select * from "{name}"').fetchall() for name in tables}
    db.close()
    return found


# ------------------------------------------------------------------------------------------------ the commit point


def test_a_new_history_is_empty(history: History) -> None:
    assert history.head() is None
    assert (history.versions(), history.moves(), history.checkpoints.all(), history.owed()) == ([], [], [], [])
    assert (history.next_number(), history.paused(), history.pins()) == (1, None, {})


def test_a_fold_becomes_true_all_at_once(history: History) -> None:
    move = commit(history, 1, None, "a", "first", "second")
    (row,) = history.checkpoints.all()
    assert history.head() == history.version(1) == version(1, None, row.id)
    assert (row.state, row.digest, row.reasons) == ("folded", DIGEST(1), ())
    assert [attempt.outcome for attempt in history.checkpoints.attempts(row.id)] == ["folded"]
    assert history.moves() == [move]
    assert (move.from_version, move.to_version, move.who, move.why) == (None, 1, "a test", "fold")
    assert history.owed() == [("first", move), ("second", move)]
    assert history.next_number() == 2


def test_if_the_head_moved_meanwhile_nothing_is_written(history: History, path: Path) -> None:
    commit(history, 1, None, "a")
    commit(history, 2, 1, "b")
    row = ready(history, "c")
    attempt = history.checkpoints.begin_attempt(row.id)
    history.move_head(1, "somebody", "rollback", [])
    before = everything(path)
    with pytest.raises(Busy, match="the head moved to v1"):
        history.commit_fold(version(3, 2, row.id), DIGEST(3), REPORTS, attempt, "a test", ["hook"])
    assert everything(path) == before
    assert history.checkpoints.get(row.id).state == "folding"
    history.commit_fold(version(3, 1, row.id), DIGEST(3), REPORTS, attempt, "a test", ["hook"])  # and it can go on
    assert [v.number for v in history.lineage(3)] == [3, 1]


def test_a_first_fold_does_not_follow_another_first_fold(history: History, path: Path) -> None:
    commit(history, 1, None, "a")
    before = everything(path)
    row = ready(history, "b")
    attempt = history.checkpoints.begin_attempt(row.id)
    with pytest.raises(Busy):
        history.commit_fold(version(2, None, row.id), DIGEST(2), [], attempt, "", [])
    assert everything(path)["versions"] == before["versions"]


def test_what_replaces_the_head_moves_it_from_there_and_has_another_parent(history: History, path: Path) -> None:
    commit(history, 1, None, "a")
    commit(history, 2, 1, "b")
    row = ready(history, "c")
    attempt = history.checkpoints.begin_attempt(row.id)
    before = everything(path)
    with pytest.raises(Busy, match="the head moved to v2"):
        history.commit_fold(version(3, 1, row.id), DIGEST(3), REPORTS, attempt, "a test", ["hook"], replaced=1)
    assert everything(path) == before
    move = history.commit_fold(version(3, 1, row.id), DIGEST(3), REPORTS, attempt, "a test", ["hook"], replaced=2)
    assert (move.from_version, move.to_version, move.why) == (2, 3, "replace")
    assert [v.number for v in history.lineage(3)] == [3, 1]
    assert history.digests_in_line(3) == {DIGEST(1), DIGEST(3)}


Spoil = Callable[[Version], tuple[Version, list[str]]]
SPOILED: dict[str, Spoil] = {
    "a number that is taken": lambda v: (replace(v, number=1), []),
    "a parent that is none": lambda v: (replace(v, parent=77), []),
    "a hook that is told twice": lambda v: (v, ["hook", "other", "hook"]),
    "a version without a digest": lambda v: (replace(v, digest=None), []),  # type: ignore[arg-type]
    "words for a number": lambda v: (replace(v, scale="much"), []),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("case", SPOILED)
def test_whatever_fails_in_the_middle_nothing_is_written(history: History, path: Path, case: str) -> None:
    commit(history, 1, None, "a")
    row = ready(history, "b")
    attempt = history.checkpoints.begin_attempt(row.id)
    spoiled, hooks = SPOILED[case](version(2, 1, row.id))
    before = everything(path)
    with pytest.raises((sqlite3.Error, Busy)):
        history.commit_fold(spoiled, DIGEST(2), REPORTS, attempt, "a test", hooks)
    assert everything(path) == before
    history.commit_fold(version(2, 1, row.id), DIGEST(2), REPORTS, attempt, "a test", ["hook"])
    assert everything(path) != before


def test_what_was_committed_is_there_for_the_next_process(path: Path) -> None:
    with History(path, write=True) as history:
        commit(history, 1, None, "a", "hook")
        before = everything(path)
    for write in (True, False):
        with History(path, write=write) as history:
            head = history.head()
            assert head is not None
            assert head.totals == Totals(1, 1.0, 1.1, 1 / 3)
            assert everything(path) == before


# ---------------------------------------------------------------------------------------------- versions and branches


@pytest.fixture
def branched(history: History) -> History:
    """1 - 2 - 3, and 4 - 5 that branch off 1; the head is 5."""
    for number, parent, name in ((1, None, "a"), (2, 1, "b"), (3, 2, "c")):
        commit(history, number, parent, name)
    history.move_head(1, "a test", "rollback", [])
    commit(history, 4, 1, "d")
    commit(history, 5, 4, "e")
    return history


@pytest.mark.parametrize(
    ("number", "line"), [(5, [5, 4, 1]), (4, [4, 1]), (3, [3, 2, 1]), (1, [1]), (9, []), (None, [])]
)
def test_a_line_is_a_version_and_its_ancestors(branched: History, number: int | None, line: list[int]) -> None:
    assert [version.number for version in branched.lineage(number)] == line


def test_a_checkpoint_is_in_the_lines_that_folded_it(branched: History) -> None:
    held = {
        (content, head): branched.checkpoint_in_line(DIGEST(content), head)
        for content, head in itertools.product(range(1, 6), range(1, 6))
    }
    lines = {1: {1}, 2: {1, 2}, 3: {1, 2, 3}, 4: {1, 4}, 5: {1, 4, 5}}
    assert {key: row is not None for key, row in held.items()} == {
        (content, head): content in lines[head] for content, head in held
    }
    assert held[2, 3] == next(row for row in branched.checkpoints.all() if row.name == "b")
    assert branched.checkpoint_in_line(DIGEST(1), None) is None
    assert branched.checkpoint_in_line(DIGEST(9), 5) is None


def test_the_moves_of_the_head_are_kept_newest_first(branched: History) -> None:
    moves = [(move.from_version, move.to_version, move.why) for move in branched.moves()]
    assert moves == [
        (4, 5, "fold"),
        (1, 4, "fold"),
        (3, 1, "rollback"),
        (2, 3, "fold"),
        (1, 2, "fold"),
        (None, 1, "fold"),
    ]
    assert branched.moves(1) == branched.moves()[:1]


def test_numbers_are_never_used_twice(branched: History) -> None:
    assert branched.next_number() == 6
    branched.move_head(2, "a test", "rollback", [])
    branched.drop_files(5, "model")
    assert branched.next_number() == 6


def test_dropped_files_change_nothing_else(branched: History) -> None:
    before = branched.version(2)
    branched.drop_files(2, "model")
    after = branched.version(2)
    assert before is not None
    assert after == replace(before, model_kept=False)
    assert not after.kept
    assert [version.number for version in branched.versions() if version.kept] == [1, 3, 4, 5]


def test_pins_are_read_one_by_one(history: History) -> None:
    history.pin({"weights": ["w", "v"], "rule": "opcm", "tied": {}})
    assert history.pins("rule", "tied", "none") == {"rule": "opcm", "tied": {}}
    assert history.pins() == {"weights": ["w", "v"], "rule": "opcm", "tied": {}}


def test_weight_reports_of_an_older_table_are_taken_over(tmp_path: Path) -> None:
    db = Database(tmp_path / "old.db")
    migrations.apply(db, stop_before="m007_weight_reports")
    values = {"cause": "fold", "rule": "opcm", "digest": "", "created_at": "", "folded": 1, "scale": 1.0}
    packed = array("d", [0.1, 0.2, 0.3, 0.4, 0.5]).tobytes()
    kept = {"slots_kept": 1, "model_kept": 1}
    db.table("versions").insert({"number": 1, "weights": packed} | values | kept)
    db.table("versions").insert({"number": 2, "weights": None} | values | kept)
    db.close()
    with History(tmp_path / "old.db", write=True) as history:
        history.pin({"weights": ["w"]})
        assert history.weight_reports(1) == {"w": WeightReport(0.1, 0.2, 0.3, 0.4, 0.5)}
        assert history.weight_reports(2) == {}
        assert [v.number for v in history.versions()] == [1, 2]


def test_weight_reports_come_back_in_float32(history: History) -> None:
    history.pin({"weights": ["w", "v"]})
    commit(history, 1, None, "a")
    rounded = [WeightReport(*torch.tensor(astuple(report)).tolist()) for report in REPORTS]
    assert history.weight_reports(1) == dict(zip(("w", "v"), rounded, strict=True))


# ----------------------------------------------------------------------------------------------- hooks, pauses, pins


def test_what_hooks_are_owed_comes_in_order_until_they_were_told(path: Path) -> None:
    with History(path, write=True) as history:
        first, second = commit(history, 1, None, "a", "x", "y"), commit(history, 2, 1, "b", "y", "x")
        assert history.owed() == [("x", first), ("y", first), ("x", second), ("y", second)]
        history.told("x", first.id)
        history.told("y", second.id)
    with History(path, write=True) as history:
        assert history.owed() == [("y", first), ("x", second)]
        history.move_head(1, "a test", "rollback", ["z"])
        assert [(hook, move.to_version) for hook, move in history.owed()] == [("y", 1), ("x", 2), ("z", 1)]


def test_a_pause_holds_until_it_is_resumed(path: Path) -> None:
    with History(path, write=True) as history:
        history.pause("uid 1", "why not")
    with History(path, write=True) as history:
        paused = history.paused()
        assert paused is not None
        assert (paused["who"], paused["why"]) == ("uid 1", "why not")
        history.pause("uid 2", "still")
        assert (history.paused() or {})["why"] == "still"
        assert history.resume()
        assert history.paused() is None
        assert not history.resume()
    with History(path) as history:
        assert history.paused() is None


def test_pins_are_values_and_keep_their_types(history: History) -> None:
    pins = {"rule": "opcm", "parameters": {"alpha": 0.1 + 0.2}, "tied": {}, "commit": None, "weights": ["a", "b"]}
    history.pin(pins)
    history.pin({"rule": "average"})
    assert history.pins() == pins | {"rule": "average"}


def test_a_request_is_kept_with_who_asked_and_how_it_ended(history: History, path: Path) -> None:
    number = history.record_request("rollback", {"version": "v1"}, "uid 7")
    history.record_answer(number, "done")
    (row,) = everything(path)["requests"]
    assert row[1:4] == ("rollback", '{"version": "v1"}', "uid 7")
    assert row[-1] == "done"


# ---------------------------------------------------------------------------------------------------- checkpoints


def test_the_order_is_written_once_and_then_stands(history: History) -> None:
    rows = [history.checkpoints.add(sighting(name)) for name in "abc"]
    for row in (rows[2], rows[0], rows[1]):
        history.checkpoints.make_ready(row.id)
    history.checkpoints.set_state(rows[2].id, "folding")
    history.checkpoints.make_ready(rows[2].id)
    assert [row.name for row in history.checkpoints.ready()] == ["c", "a", "b"]


def test_those_that_a_person_asked_for_go_first_in_the_order_of_asking(history: History) -> None:
    rows = {name: ready(history, name) for name in "abcd"}
    for name in "db":
        history.checkpoints.hurry(rows[name].id)
    assert [row.name for row in history.checkpoints.ready()] == ["d", "b", "a", "c"]


def test_the_first_that_wait_are_had_without_the_others(history: History) -> None:
    for name in "abc":
        ready(history, name)
    assert [[row.name for row in history.checkpoints.ready(most)] for most in (1, 2, 9)] == [
        ["a"],
        ["a", "b"],
        ["a", "b", "c"],
    ]


def test_a_reason_fills_neither_the_history_nor_a_log(history: History) -> None:
    long = Reason("code", "f" * 10**6, "e" * 10**6, "n" * 10**6)
    (kept,) = history.checkpoints.add(sighting("a"), "refused", long).reasons
    assert {len(text) for text in (kept.found, kept.expected, kept.next_step)} == {4000}
    assert kept.found.endswith("f…")
    assert len(str(long)) < 8100
    (kept,) = history.checkpoints.set_state(1, "held", replace(long, found="f" * 4000)).reasons
    assert kept.found == "f" * 4000


@pytest.mark.parametrize("state", ["held", "refused"])
def test_what_lay_there_at_init_stays_set_aside_when_it_changes(history: History, state: Any) -> None:
    reason = replace(REASON, code="existing")
    row = history.checkpoints.add(sighting("a"), state, reason)
    again = history.checkpoints.resight(row.id, sighting("a", inode=2))
    assert (again.state, again.reasons, again.since) == (state, (reason,), row.since)
    assert again.fingerprint == sighting("a", inode=2).fingerprint
    other = history.checkpoints.add(sighting("b"), state, REASON)
    assert history.checkpoints.resight(other.id, sighting("b", inode=2)).state == "settling"


def test_a_decision_without_any_file_is_about_the_place(history: History) -> None:
    rows = [history.checkpoints.add(Sighting("directory", f"/watch/{name}", name, ())) for name in "ab"]
    history.decided.refuse(rows[0], "no", "alice")
    decisions = history.decided.all()
    assert decisions.made[0].content == "/watch/a"
    assert decisions.on((None, rows[1].fingerprint)) == ()
    assert replace(decisions, made=(replace(decisions.made[0], content=""),)).on(("",)) == ()  # as once was written


def test_a_block_of_writes_counts_whole_or_not_at_all(history: History, path: Path) -> None:
    row = history.checkpoints.add(sighting("a"), "held", REASON)
    before = everything(path)
    with pytest.raises(Busy), history.all_or_nothing():
        history.checkpoints.make_ready(row.id)
        history.decided.approve(row, "alice")
        raise Busy("not now")
    assert everything(path) == before


def test_what_a_crash_ended_goes_behind_all_others_until_an_attempt_ends(history: History) -> None:
    rows = {name: ready(history, name) for name in "abc"}
    history.checkpoints.hurry(rows["a"].id)
    history.checkpoints.begin_attempt(rows["a"].id)
    history.checkpoints.make_ready(rows["a"].id)  # as recovery does
    assert [row.name for row in history.checkpoints.ready()] == ["b", "c", "a"]
    history.checkpoints.end_attempt(history.checkpoints.begin_attempt(rows["a"].id), "abandoned")
    history.checkpoints.make_ready(rows["a"].id)
    assert [row.name for row in history.checkpoints.ready()] == ["a", "b", "c"]


def test_what_changed_before_its_fold_loses_its_place(history: History) -> None:
    first, second = ready(history, "a"), ready(history, "b")
    history.checkpoints.hurry(first.id)
    again = history.checkpoints.resight(first.id, sighting("a", inode=2))
    assert (again.id, again.state, again.order, again.urgent) == (first.id, "settling", None, None)
    assert again.fingerprint == sighting("a", inode=2).fingerprint
    history.checkpoints.make_ready(first.id)
    assert [row.name for row in history.checkpoints.ready()] == ["b", "a"]
    assert second.order is not None


def test_the_newest_row_of_a_place_counts(history: History) -> None:
    commit(history, 1, None, "a")
    newer = history.checkpoints.add(sighting("a", inode=2))
    assert history.checkpoints.at("directory", "/watch/a") == newer
    assert history.checkpoints.at("elsewhere", "/watch/a") is None
    assert history.checkpoints.digests_from("/watch/a") == {DIGEST(1)}


def test_a_state_keeps_its_reasons_and_since_when(history: History, monkeypatch: pytest.MonkeyPatch) -> None:
    row = history.checkpoints.add(sighting("a"), "held", REASON, replace(REASON, found='a "quoted" ü\n'))
    monkeypatch.setattr("mergd.state.checkpoints.utc_now", lambda: "later")
    assert history.checkpoints.get(row.id) == row
    assert row.reasons[1].found == 'a "quoted" ü\n'
    assert history.checkpoints.set_state(row.id, "held", REASON).since == row.since
    assert history.checkpoints.set_state(row.id, "ready").since == "later"
    assert history.checkpoints.get(row.id).reasons == ()


def test_a_duplicate_is_counted_by_nobody(history: History) -> None:
    commit(history, 1, None, "a")
    first = history.checkpoints.all()[0]
    copy = ready(history, "copy")
    history.checkpoints.set_state(copy.id, "folded", REASON, digest=DIGEST(1), duplicate_of=first.id)
    ready(history, "b")
    assert history.checkpoints.count() == {"folded": 1, "ready": 1}
    assert history.checkpoints.holding(DIGEST(1)) == first
    assert history.checkpoints.in_state("folded", "ready") == history.checkpoints.all()


def test_an_attempt_that_a_crash_ended_has_no_outcome(path: Path) -> None:
    with History(path, write=True) as history:
        row = ready(history, "a")
        history.checkpoints.end_attempt(history.checkpoints.begin_attempt(row.id), "abandoned")
        history.checkpoints.begin_attempt(row.id)
    with History(path, write=True) as history:
        assert history.checkpoints.get(row.id).state == "folding"
        assert [attempt.outcome for attempt in history.checkpoints.attempts(row.id)] == ["abandoned", None]


# ----------------------------------------------------------------------------------------------------- the database


def test_a_database_of_a_newer_mergd_is_left_alone(path: Path) -> None:
    with History(path, write=True) as history:
        commit(history, 1, None, "a")
    with sqlite3.connect(path) as db:
        columns = [row[1] for row in db.execute("pragma table_info(_sqlite_migrations)")]
        values = {"migration_set": "mergd", "name": "m999_from_the_future", "applied_at": "2099-01-01T00:00:00"}
        used = [column for column in columns if column in values]
        db.execute(
            f"insert into _sqlite_migrations ({','.join(used)}) values ({','.join('?' * len(used))})",
            [values[column] for column in used],
        )
    db.close()
    before = everything(path)
    with pytest.raises(Misconfigured, match="m999_from_the_future") as raised:
        History(path, write=True)
    assert "upgrade" in raised.value.hint
    assert everything(path) == before


@pytest.mark.parametrize("data", [b"no database" * 1000, b"SQLite format 3\0" + b"\xff" * 5000])
def test_a_file_that_is_no_database_is_damaged_and_left_alone(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    with pytest.raises(Damaged, match=str(path)) as raised:
        History(path, write=True)
    assert "backup" in raised.value.hint
    assert path.read_bytes() == data


def test_a_database_with_a_broken_page_is_damaged(path: Path) -> None:
    with History(path, write=True) as history:
        for k in range(200):
            history.checkpoints.add(sighting(f"checkpoint-{k}"))
        history.tidy()
    data = bytearray(path.read_bytes())
    page = 4096
    for start in range(2 * page, len(data), page):
        data[start : start + 200] = b"\xee" * 200
    path.write_bytes(data)
    with pytest.raises(Damaged):
        History(path, write=True)


def test_a_reader_reads_while_another_writes_and_sees_no_half(history: History, path: Path) -> None:
    commit(history, 1, None, "a")
    seen: list[tuple[int, int]] = []
    done = threading.Event()

    def read() -> None:
        with History(path) as reader:
            while not done.is_set():
                head = reader.head()
                folded = [row for row in reader.checkpoints.all() if row.state == "folded"]
                seen.append((head.number if head else 0, len(folded)))

    thread = threading.Thread(target=read)
    thread.start()
    for number in range(2, 40):
        commit(history, number, number - 1, f"c{number}")
    done.set()
    thread.join()
    assert seen
    assert all(head <= folded for head, folded in seen)
    assert [head for head, _ in seen] == sorted(head for head, _ in seen)


def test_a_reader_cannot_write(history: History, path: Path) -> None:
    with History(path) as reader, pytest.raises(sqlite3.OperationalError):
        reader.pin({"rule": "other"})


def test_a_reader_makes_no_database(path: Path) -> None:
    with pytest.raises(sqlite3.OperationalError):
        History(path)
    assert not path.exists()


def test_only_the_owner_may_read_the_history(history: History, path: Path) -> None:
    commit(history, 1, None, "a")
    modes = {name: (path.parent / name).stat().st_mode & 0o777 for name in os.listdir(path.parent)}
    assert modes.keys() >= {"mergd.db", "mergd.db-wal"}
    assert set(modes.values()) == {0o600}, modes


def test_tidying_empties_the_write_ahead_log(history: History, path: Path) -> None:
    commit(history, 1, None, "a")
    history.tidy()
    assert (path.parent / "mergd.db-wal").stat().st_size == 0
    assert history.head() is not None


# ------------------------------------------------------------------------------------------------------------- places


def test_what_lies_right_in_a_folder_is_found_and_nothing_else(history: History) -> None:
    names = ("run", "run/a", "run/b", "run/a/deeper", "run0", "run-", "other/run/a")
    rows = {name: history.checkpoints.add(sighting(name)) for name in names}
    found = history.checkpoints.under("directory", "/watch/run")
    assert found == [rows["run"], rows["run/a"], rows["run/b"]]
    assert history.checkpoints.under("elsewhere", "/watch/run") == []


def test_what_was_folded_last_from_a_place_is_found(history: History) -> None:
    assert history.checkpoints.folded_at("directory", "/watch/a") is None
    commit(history, 1, None, "a")
    commit(history, 2, 1, "a")
    newer = history.checkpoints.add(sighting("a", inode=2))
    folded = history.checkpoints.folded_at("directory", "/watch/a")
    assert folded is not None
    assert (folded.digest, folded.id < newer.id) == (DIGEST(2), True)


def test_what_a_checkpoint_replaces_is_kept_with_it(history: History) -> None:
    first = history.checkpoints.add(sighting("a"))
    second = history.checkpoints.add(sighting("b"))
    assert first.replaces is None
    assert history.checkpoints.make_ready(second.id, replaces=first.id).replaces == first.id
    assert history.checkpoints.make_ready(second.id).replaces == first.id  # however often it waits again


# ---------------------------------------------------------------------------- what later checkpoints are judged by


def test_reports_that_an_older_mergd_wrote_have_no_inner_products(history: History) -> None:
    history.pin({"weights": ["a", "b"]})
    commit(history, 1, None, "a")
    history._db.execute("update weight_reports set packed = ?", [array("d", [1, 2, 3, 4, 5, 6, 7, 8]).tobytes()])
    assert history.weight_reports(1) == {"a": WeightReport(1, 2, 3, 4, 0.0), "b": WeightReport(5, 6, 7, 8, 0.0)}


def test_what_folds_brought_is_told_for_one_line_newest_first(history: History) -> None:
    for number, parent, name in ((1, None, "a"), (2, 1, "b"), (3, 2, "c")):
        row = ready(history, name)
        attempt = history.checkpoints.begin_attempt(row.id)
        brought = Contribution(number, name, "alice", float(number), b"sketch")
        history.commit_fold(
            version(number, parent, row.id), DIGEST(number), REPORTS, attempt, "a test", [], None, brought
        )
    assert [earlier.checkpoint for earlier in history.contributions.in_line(3, 1000)] == ["c", "b", "a"]
    assert [earlier.version for earlier in history.contributions.in_line(3, 2)] == [3, 2]
    assert history.contributions.in_line(2, 1)[0] == Contribution(2, "b", "alice", 2.0, b"sketch")
    assert history.contributions.in_line(None, 1000) == ()
    assert history.contributions.count_since(timedelta(days=365 * 1000)) == 3
    assert history.contributions.count_since(-timedelta(days=365 * 1000)) == 0


def test_the_last_word_on_a_content_counts(history: History) -> None:
    held = history.checkpoints.set_state(ready(history, "a").id, "held", REASON, digest=DIGEST(1))
    contents = (DIGEST(1), None)
    history.decided.approve(held, "alice")
    assert history.decided.all().lift(Verdict("held", (REASON,)), contents).decision == "admitted"
    another = Reason("another", "found", "expected", "next")
    assert history.decided.all().lift(Verdict("held", (REASON, another)), contents).reasons == (another,)
    assert history.decided.all().lift(Verdict("refused", (REASON,)), contents).decision == "refused"
    assert history.decided.all().lift(Verdict("held", (REASON,)), (DIGEST(2),)).decision == "held"
    history.decided.refuse(held, "no", "bob")
    assert history.decided.all().refusal(contents) == history.decided.all().made[-1]
    history.decided.retry(held, "bob")
    history.decided.approve(held, "bob")
    assert history.decided.all().refusal(contents) is None
    history.decided.refuse(held, "no!", "alice")
    last = history.decided.all().refusal(contents)
    assert last is not None
    assert (last.why, last.who, last.content) == ("no!", "alice", DIGEST(1))
