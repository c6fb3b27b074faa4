"""Notices: written with what they tell of, told in order to each hook by itself, and counted where they were lost."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from mergd.state.errors import Busy
from mergd.state.history import History
from mergd.state.records import FileStamp, Notice, Reason, Sighting, Totals, Version

DIGEST = "{:064x}".format
REASON = Reason("shape", "(2, 2)", "(2, 3)", "ask its maker")


@pytest.fixture
def history(tmp_path: Path) -> Iterator[History]:
    with History(tmp_path / "mergd.db", write=True) as history:
        history.pin({"weights": ["w"]})
        yield history


def sighting(name: str) -> Sighting:
    return Sighting("directory", f"/watch/{name}", name, (FileStamp("model.safetensors", 1, 1, 10, 1, 1),))


def commit(history: History, number: int, parent: int | None, name: str) -> None:
    """Fold a checkpoint, whose digest is made from its version's number."""
    row = history.checkpoints.make_ready(history.checkpoints.add(sighting(name)).id)
    attempt = history.checkpoints.begin_attempt(row.id)
    version = Version(number, parent, "fold", row.id, "opcm", Totals(), 1.0, DIGEST(number), "2026-01-01T00:00:00.000Z")
    history.commit_fold(version, DIGEST(number), [], attempt, "a test", ())


def all_for(history: History, hook: str) -> list[Notice]:
    """Tell a hook all that it is owed."""
    found = []
    while (notice := history.notices.next(hook)) is not None:
        history.notices.told(hook, notice.seq)
        found.append(notice)
    return found


def test_each_move_and_each_refusal_is_a_notice_in_order(history: History) -> None:
    history.notices.listen("deploy")
    commit(history, 1, None, "a")
    refused = history.checkpoints.add(sighting("b"))
    history.checkpoints.set_state(refused.id, "refused", REASON, digest="e" * 64)
    held = history.checkpoints.add(sighting("c"), "held", REASON)
    commit(history, 2, 1, "d")
    history.move_head(1, "eve", "rollback", ())
    told = all_for(history, "deploy")
    assert [(n.kind, n.from_version, n.to_version, n.who, n.digest) for n in told] == [
        ("fold", None, 1, "a test", DIGEST(1)),
        ("refused", None, None, "mergd", "e" * 64),
        ("held", None, None, "mergd", None),
        ("fold", 1, 2, "a test", DIGEST(2)),
        ("rollback", 2, 1, "eve", DIGEST(1)),
    ]
    assert [(n.path, n.why) for n in told[1:3]] == [("/watch/b", str(REASON)), ("/watch/c", str(REASON))]
    assert [n.at for n in told] == [
        history.moves()[2].at,
        *(history.checkpoints.get(row.id).since for row in (refused, held)),
        history.moves()[1].at,
        history.moves()[0].at,
    ]
    assert len({n.id for n in told}) == 5
    assert [n.seq for n in told] == sorted(n.seq for n in told)


def test_only_entering_a_state_is_told(history: History) -> None:
    history.notices.listen("deploy")
    row = history.checkpoints.add(sighting("a"), "held", REASON)
    history.checkpoints.set_state(row.id, "held", REASON)
    history.checkpoints.set_state(row.id, "ready")
    assert [n.kind for n in all_for(history, "deploy")] == ["held"]
    history.checkpoints.set_state(row.id, "refused", REASON, who="eve")
    assert [(n.kind, n.who) for n in all_for(history, "deploy")] == [("refused", "eve")]


def test_what_did_not_happen_is_not_told(history: History) -> None:
    history.notices.listen("deploy")
    commit(history, 1, None, "a")
    with pytest.raises(Busy):
        commit(history, 2, None, "b")
    assert [n.to_version for n in all_for(history, "deploy")] == [1]


def test_each_hook_goes_its_own_way_and_a_new_one_is_not_told_the_past(history: History) -> None:
    history.notices.listen("one")
    commit(history, 1, None, "a")
    history.notices.listen("one", "two")
    commit(history, 2, 1, "b")
    assert [n.to_version for n in all_for(history, "two")] == [2]
    assert [n.to_version for n in all_for(history, "one")] == [1, 2]
    commit(history, 3, 2, "c")
    history.notices.listen("one", "two")  # as at each start
    assert [n.to_version for n in all_for(history, "two")] == [3]


def test_one_that_was_taken_away_begins_anew(history: History) -> None:
    history.notices.listen("deploy")
    commit(history, 1, None, "a")
    history.notices.give_up("deploy", 1, "down")
    commit(history, 2, 1, "b")
    history.notices.listen()
    assert history.notices.standing() == {}
    history.notices.listen("deploy")
    assert history.notices.next("deploy") is None
    assert history.notices.standing()["deploy"]["undelivered"] == 0
    assert history.notices.next("unknown") is None


def test_what_is_owed_and_what_was_lost_is_counted(history: History) -> None:
    history.notices.listen("deploy")
    for number in (1, 2, 3):
        commit(history, number, number - 1 or None, f"c{number}")
    history.notices.told("deploy", 1)
    history.notices.give_up("deploy", 2, "it ended with 3: " + "x" * 10_000)
    standing = history.notices.standing()["deploy"]
    last = standing.pop("last_undelivered")
    assert standing == {"done": 2, "owed": 1, "undelivered": 1}
    assert last["notice"] == 2
    assert last["why"].startswith("it ended with 3")
    assert len(last["why"]) <= 4000


def test_what_every_hook_is_past_is_let_go_of_but_for_the_newest(history: History) -> None:
    history.notices.listen("fast", "slow")
    for number in range(1, 9):
        history.checkpoints.add(sighting(str(number)), "held", REASON)
    for number in range(1, 7):
        history.notices.give_up("slow", number, "down")
        history.notices.told("fast", number)
    history.notices.prune(keep=1)
    notice = history.notices.next("slow")
    assert notice is not None
    assert notice.seq == 7  # which it is owed
    assert history.notices.standing()["slow"]["undelivered"] == 1
    (kept,) = history._db.execute("select group_concat(seq) from notices").fetchone()
    assert kept == "6,7,8"


def test_without_a_hook_only_the_newest_notices_stay(history: History) -> None:
    for number in range(1, 9):
        history.checkpoints.add(sighting(str(number)), "held", REASON)
    history.notices.prune(keep=2)
    history.notices.listen("new")
    assert history.notices.standing()["new"] == {
        "done": 8,
        "owed": 0,
        "undelivered": 0,
        "last_undelivered": None,
    }
