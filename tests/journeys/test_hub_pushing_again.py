"""Pushes that do not go as planned: what the Hub refuses for good, what changes while they run, and answers that got lost."""

import json
import signal
import sqlite3
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fakehub import Before, FakeHub, Fault, Request, Status
from hub_server.faults import Line
from hub_server.messages import Answer
from support.commands import Command, eventually
from support.hub import OF_BASE, HubMerge, stop
from support.merges import set_in
from support.pushing import TARGET, held, history, owed, published, pushed, pushing_merge, tags

pytestmark = pytest.mark.long

COMMIT, UPLOAD, BATCH = f"POST /api/models/{TARGET}/commit/", "PUT /lfs/", "objects/batch"


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with FakeHub() as hub:
        yield hub


@pytest.fixture
def new(hub: FakeHub, tmp_path: Any) -> Callable[..., HubMerge]:
    return lambda **settings: pushing_merge(tmp_path, hub, **settings)


@pytest.fixture
def merge(new: Callable[..., HubMerge]) -> HubMerge:
    return new()


def reload(daemon: Command) -> None:
    """Have the daemon read its configuration again, and wait until it has."""
    eventually(lambda: "watching" in daemon.err)
    before = daemon.err.count("was read again")
    daemon.send(signal.SIGHUP)
    eventually(lambda: daemon.err.count("was read again") > before)


# ---------------------------------------------------------------------------------------------------- refused for good


class BatchError(Fault):
    """The storage for large files takes none of them, of which the client makes a ValueError."""

    def answer(self, line: Line, request: Request, serve: Callable[[], Answer]) -> Answer:
        wrong = [{**one, "error": {"code": 422, "message": "too large"}} for one in request.json()["objects"]]
        return Answer(200, json.dumps({"objects": wrong}).encode(), {"Content-Type": "application/json"})


@pytest.mark.parametrize(
    ("route", "fault", "says"),
    [(COMMIT, Status(400), "400"), (COMMIT, Status(413), "413"), (COMMIT, Status(422), "422"),
     (BATCH, BatchError(), "too large")],
)  # fmt: skip
def test_what_is_refused_for_good_is_the_operators_and_waits_for_a_change(
    merge: HubMerge, hub: FakeHub, route: str, fault: Fault, says: str
) -> None:
    expected = hub.fault(route, fault, times=None)
    with merge.running("run") as daemon:
        merge.drop("a", 1)
        eventually(lambda: says in owed(merge)["trouble"])
        assert "does not take it" in owed(merge)["trouble"]
        assert "then reload the daemon" in merge.mergd("status").out
        assert "push_backoff" not in merge_pins(merge)  # a rest is for what waiting mends
        met = expected.met
        assert merge.mergd("pause").code == merge.mergd("resume").code == 0  # the hooks are told again
        assert expected.met == met
        reload(daemon)
        eventually(lambda: expected.met > met)
        merge.drop("b", 2)
        eventually(lambda: "v1 is passed over" in daemon.err)
        expected.end()
        reload(daemon)
        eventually(lambda: pushed(merge) == 2 and not owed(merge)["trouble"])
        stop(daemon)
    assert history(hub) == ["v2: folded b"]


def merge_pins(merge: HubMerge) -> list[str]:
    with sqlite3.connect(f"file:{merge.store.database}?mode=ro", uri=True) as db:
        return [name for (name,) in db.execute("select name from pins")]


def test_a_storage_that_answers_400_has_lost_its_patience_and_is_asked_again(merge: HubMerge, hub: FakeHub) -> None:
    hub.fault(UPLOAD, Status(400))
    with merge.running("run") as daemon:
        merge.drop("a", 1)
        eventually(lambda: "push_backoff" in merge_pins(merge))
        assert "does not take it" not in owed(merge)["trouble"]
        reload(daemon)
        eventually(lambda: pushed(merge) == 1)
        stop(daemon)


# ------------------------------------------------------------------------------------------------ changes while it runs


def test_a_reload_that_withdraws_what_may_be_seen_reaches_the_push_that_runs(
    new: Callable[..., HubMerge], hub: FakeHub
) -> None:
    merge = new(**{"hub.publish_private_sources": True})
    hub.push(TARGET, {"README.md": b"to be replaced"}, title="initial commit")
    with merge.running("run") as daemon:

        def withdraw() -> None:
            set_in(merge.config, **{"hub.publish_private_sources": "false"})
            reload(daemon)

        hub.fault(UPLOAD, Before(withdraw))
        merge.drop("local", 1)
        eventually(lambda: "withheld" in owed(merge)["trouble"])
        stop(daemon)
    assert history(hub) == []


@pytest.mark.parametrize(
    ("what", "says"),
    [("versions set damaged = 'a test'", "v1 is not pushed: a test"),
     ("checkpoints set public = 0", "acme/open is not known to be public")],
)  # fmt: skip
def test_what_is_damaged_or_made_private_while_it_is_sent_is_not_committed(
    merge: HubMerge, hub: FakeHub, what: str, says: str
) -> None:
    hub.push(TARGET, {"README.md": b"to be replaced"}, title="initial commit")

    def happens() -> None:
        with sqlite3.connect(merge.store.database) as db:
            db.execute(f"update {what}")

    hub.fault("preupload", Before(happens))
    merge.push("open", 1)
    with merge.running("run") as daemon:
        eventually(lambda: says in daemon.err)
        stop(daemon)
    assert history(hub) == []


# --------------------------------------------------------------------------------------------------- what is found there


def test_only_the_newest_commits_are_looked_at_for_one_whose_answer_got_lost(merge: HubMerge, hub: FakeHub) -> None:
    for number in range(500):
        hub.push(TARGET, {"mergd_manifest.json": str(number).encode()}, private=True)
    hub.page_size = 50
    merge.drop("a", 1)
    assert merge.once().code == 0
    assert pushed(merge) == 1
    assert len(merge.asked(f"/api/models/{TARGET}/commits/")) == 4


def test_a_tag_on_other_content_is_told_of_with_the_commands_that_move_it(merge: HubMerge, hub: FakeHub) -> None:
    hub.push(TARGET, {"mergd_manifest.json": b"{}"}, private=True)
    hub.tag(TARGET, "v1")
    with merge.running("run") as daemon:
        merge.drop("a", 1)
        eventually(lambda: pushed(merge) == 1)
        made = hub.repositories[TARGET].branches["main"]
        said = merge.mergd("status").out
        assert "the tag v1 of org/merged leads to other content" in said
        assert "hf repos tag delete org/merged v1" in said
        assert f"hf repos tag create org/merged v1 --revision {made}" in said
        stop(daemon)
    assert tags(hub) == {"v1": "Upload"}


def test_after_a_rebuild_a_tag_on_the_same_content_is_no_trouble(merge: HubMerge, hub: FakeHub) -> None:
    merge.drop("a", 1)
    assert merge.once().code == 0
    assert merge.mergd("rebuild", "--force").code == 0
    with merge.running("run") as daemon:
        eventually(lambda: pushed(merge) == 1)
        assert owed(merge)["trouble"] == ""
        stop(daemon)
    assert held(hub) == held(hub, "v1") == published(merge, 1)
    assert history(hub) == ["v1: folded a"]  # nothing had changed: the client makes no empty commit


def test_what_was_public_is_known_to_be_after_a_rebuild_and_which_licence_it_claims(
    merge: HubMerge, hub: FakeHub
) -> None:
    hub.push(TARGET, {"README.md": b"to be replaced"}, title="initial commit")
    merge.push("open", 1, tags=[OF_BASE, "license:mit"])
    assert merge.once().code == 0
    assert b"public" not in held(hub)["mergd_manifest.json"]
    assert merge.mergd("rebuild", "--force").code == 0
    (row,) = merge.checkpoints()
    assert (row.public, row.licence) == (True, "mit")
    merge.push("more", 2, tags=[OF_BASE, "license:apache-2.0"])
    assert merge.once().code == 0
    assert history(hub) == ["v1: folded acme/open", "v2: folded acme/more"]
    rows = json.loads(held(hub)["mergd_manifest.json"])["checkpoints"]
    assert [one["licence"] for one in rows] == ["mit", "apache-2.0"]
