"""Each move of the head is pushed to a repository of the Hub: the real client, the real commands, a Hub on the loopback."""

import base64
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from fakehub import Account, Before, FakeHub, Fault, Request, Reset, Silence, Status, Truncated, too_many
from hub_server.faults import Line
from hub_server.messages import Answer
from support.commands import Command, eventually
from support.hub import BASE, TOKEN, HubMerge, stop
from support.merges import set_in
from support.pushing import TARGET, WRITER, held, history, owed, published, pushed, pushing_merge, tags

pytestmark = pytest.mark.long


@pytest.fixture
def new(hub: FakeHub, tmp_path: Path) -> Callable[..., HubMerge]:
    return lambda **settings: pushing_merge(tmp_path, hub, **settings)


@pytest.fixture
def merge(new: Callable[..., HubMerge]) -> HubMerge:
    return new()


def test_each_version_is_a_commit_and_a_tag_and_a_rollback_is_one_more_commit(merge: HubMerge, hub: FakeHub) -> None:
    for seed, name in enumerate(("a", "b"), 1):
        merge.drop(name, seed)
        assert merge.once().code == 0
    assert history(hub) == ["v1: folded a", "v2: folded b"]
    assert tags(hub) == {"v1": "v1: folded a", "v2": "v2: folded b"}
    assert held(hub) == held(hub, "v2") == published(merge, 2)
    assert hub.repositories[TARGET].private
    assert merge.mergd("rollback", "v1").code == 0
    assert merge.once().code == 0
    assert history(hub)[2:] == ["rolled back to v1"]
    assert held(hub) == held(hub, "v1") == published(merge, 1)
    assert tags(hub) == {"v1": "v1: folded a", "v2": "v2: folded b"}
    commit = hub.repositories[TARGET].tags["v2"]
    assert f"pushed: {TARGET} {commit}" in merge.mergd("show", "v2").out
    assert f"pushed: v1 ({TARGET}@" in merge.mergd("status").out


def test_a_large_file_goes_in_parts_and_the_status_says_how_far_it_is(merge: HubMerge, hub: FakeHub) -> None:
    hub.part_size = 64
    hub.fault(r"PUT /lfs/.*/2$", Silence(3600))
    with merge.running("run") as daemon:
        merge.drop("a", 1)
        eventually(lambda: "files" in owed(merge)["doing"])
        assert "pushing v1: " in merge.mergd("status").out
        stop(daemon)
    assert merge.once().code == 0
    assert held(hub) == published(merge, 1)
    assert len([asked for asked in hub.asked if asked.startswith("PUT /lfs/")]) > 2


def test_what_others_put_there_is_replaced_and_their_tags_stay(merge: HubMerge, hub: FakeHub) -> None:
    another = {"mergd_manifest.json": b"{}", "theirs.txt": b"1", "folder/theirs.txt": b"2", ".gitattributes": b"3"}
    hub.push(TARGET, another, private=True)
    hub.tag(TARGET, "v1")
    merge.drop("a", 1)
    done = merge.once()
    assert "the tag v1 of org/merged leads to other content" in done.err
    assert held(hub) == published(merge, 1)
    assert tags(hub) == {"v1": "Upload"}
    hub.push(TARGET, {"theirs.txt": b"1"}, private=True)
    merge.drop("b", 2)
    assert merge.once().code == 0
    assert held(hub) == published(merge, 2)
    assert history(hub) == ["Upload", "v1: folded a", "Upload", "v2: folded b"]


def test_a_repository_that_holds_something_else_is_left_alone(merge: HubMerge, hub: FakeHub) -> None:
    hub.push(TARGET, {"README.md": b"mine", "model.safetensors": b"mine too"}, private=True)
    merge.drop("a", 1)
    merge.once()
    assert history(hub) == ["Upload"]
    assert "holds something else" in owed(merge)["trouble"]


def test_what_was_public_and_is_not_any_more_is_withheld(merge: HubMerge, hub: FakeHub) -> None:
    make_public(hub)
    assert merge.mergd("pause").code == 0
    merge.push("a", 1)
    merge.once()
    hub.repositories["acme/a"].private = True
    assert merge.mergd("resume").code == 0
    merge.once()
    assert merge.hub_states() == {"a": "folded"}
    assert "acme/a is not known to be public" in owed(merge)["trouble"]


def test_a_file_of_more_than_a_token_ends_the_daemon_and_is_not_shown(merge: HubMerge) -> None:
    (merge.root / "write-token").write_text(f"{WRITER}\n{WRITER}\n")
    with merge.running("run") as daemon:
        ended = daemon.ended()
    assert ended.code == 78
    assert WRITER not in ended.out + ended.err


def test_a_commit_that_others_make_meanwhile_is_not_undone_unseen(merge: HubMerge, hub: FakeHub) -> None:
    hub.fault(ROUTES["commit"], Before(lambda: hub.push(TARGET, {"theirs.txt": b"1", "mergd_manifest.json": b"{}"})))
    with merge.running("run") as daemon:
        merge.drop("a", 1)
        eventually(lambda: "A commit has happened since" in daemon.err)
        again_until(daemon, lambda: pushed(merge) == 1)
        stop(daemon)
    assert history(hub) == ["Upload", "v1: folded a"]


# --------------------------------------------------------------------------------------------------- what goes wrong


ALL = os.environ.get("TEST_ALL_HUB")  # `make test-hub-clients` sets it: every fault, on every route
ROUTES = {
    "look": f"GET /api/models/{TARGET}$",
    "create": "POST /api/repos/create",
    "how": f"POST /api/models/{TARGET}/preupload/",
    "batch": "objects/batch",
    "upload": "PUT /lfs/",
    "verify": "lfs/verify",
    "commit": f"POST /api/models/{TARGET}/commit/",
    "tag": f"POST /api/models/{TARGET}/tag/",
}
FAULTS: dict[str, Callable[[], Fault]] = {
    "403": lambda: Status(403),
    "409": lambda: Status(409),
    "429": lambda: too_many(300),
    "503": lambda: Status(503, {"Retry-After": "300"}),
    "cut": lambda: Truncated(1),
    "reset": Reset,
    "lost": lambda: Reset(done=True),
    "silence": lambda: Silence(3600),
}


def again_until(daemon: Command, look: Callable[[], Any]) -> None:
    """Have the daemon try again at once, not after its rest, until something is seen."""

    eventually(lambda: "watching" in daemon.err)  # before that, the signal would end it

    def ask() -> Any:
        daemon.send(signal.SIGHUP)
        time.sleep(0.2)
        return look()

    eventually(ask)


def fold_and_push(merge: HubMerge, hub: FakeHub, daemon: Command, seed: int, route: str, fault: Fault) -> None:
    """Drop a checkpoint, and see it folded while a route fails; and pushed as soon as that does no more."""
    if route == "create" and TARGET in hub.repositories:
        hub.delete(TARGET)
    expected = hub.fault(ROUTES[route], fault)
    merge.drop(route, seed)
    eventually(lambda: (merge.status().get("head"), expected.met) == (seed, 1))
    again_until(daemon, lambda: pushed(merge) == seed and not owed(merge)["trouble"])


@pytest.mark.parametrize("fault", [name for name in FAULTS if name != "silence"] if ALL else ["503", "lost"])
def test_whatever_fails_folding_goes_on_and_each_version_is_pushed_once(
    merge: HubMerge, hub: FakeHub, fault: str
) -> None:
    with merge.running("run") as daemon:
        for seed, route in enumerate(ROUTES, 1):
            fold_and_push(merge, hub, daemon, seed, route, FAULTS[fault]())
        stop(daemon)
    names = list(ROUTES)
    assert history(hub) == [f"v{seed}: folded {route}" for seed, route in enumerate(names, 1) if seed >= 2]
    assert tags(hub) == {f"v{seed}": f"v{seed}: folded {route}" for seed, route in enumerate(names, 1) if seed >= 2}
    assert held(hub) == published(merge, len(names))


@pytest.mark.parametrize("route", ROUTES if ALL else ["upload", "commit"])
def test_a_silent_hub_delays_neither_folding_nor_the_end(merge: HubMerge, hub: FakeHub, route: str) -> None:
    expected = hub.fault(ROUTES[route], FAULTS["silence"](), times=None)
    with merge.running("run") as daemon:
        merge.drop("a", 1)
        eventually(lambda: expected.met)
        merge.drop("b", 2)
        eventually(lambda: merge.status()["head"] == 2)
        assert owed(merge)["doing"].startswith("pushing v1")
        stop(daemon)
    expected.end()
    assert merge.once().code == 0
    assert history(hub) == ["v1: folded a", "v2: folded b"]


class After(Fault):
    """Something happens once what was asked has been done, before the answer is sent."""

    def __init__(self, happens: Callable[[], object]) -> None:
        self.happens = happens

    def answer(self, line: Line, request: Request, serve: Callable[[], Answer]) -> Answer:
        right = serve()
        self.happens()
        return right


@pytest.mark.parametrize("route", ["look", "create", "upload", "commit", "tag"] if ALL else ["commit"])
@pytest.mark.parametrize("moment", [Before, After])
def test_a_push_that_is_killed_is_done_once(
    merge: HubMerge, hub: FakeHub, route: str, moment: Callable[[Callable[[], object]], Fault]
) -> None:
    with merge.running("run") as daemon:
        hub.fault(ROUTES[route], moment(lambda: daemon.send(signal.SIGKILL)))
        merge.drop("a", 1)
        eventually(lambda: not daemon.runs)
    assert merge.once().code == 0
    merge.drop("b", 2)
    assert merge.once().code == 0
    assert history(hub) == ["v1: folded a", "v2: folded b"]
    assert tags(hub) == {"v1": "v1: folded a", "v2": "v2: folded b"}
    assert held(hub) == published(merge, 2)


# -------------------------------------------------------------------------------------------------- who may see what


def make_public(hub: FakeHub) -> None:
    """Have a public target there before anything is pushed."""
    hub.push(TARGET, {"README.md": b"to be replaced"}, title="initial commit")


def test_what_is_not_known_to_be_public_is_withheld_from_a_public_repository(merge: HubMerge, hub: FakeHub) -> None:
    make_public(hub)
    merge.push("open", 1)
    assert merge.once().code == 0
    assert history(hub) == ["v1: folded acme/open"]
    merge.push("closed", 2, private=True)
    with merge.running("run") as daemon:
        eventually(lambda: "withheld" in owed(merge)["trouble"])
        assert "acme/closed" in owed(merge)["trouble"]
        assert "last error: v2 is withheld" in merge.mergd("status").out
        assert history(hub) == ["v1: folded acme/open"]
        hub.repositories[TARGET].private = True
        again_until(daemon, lambda: history(hub)[1:])
        stop(daemon)
    assert history(hub) == ["v1: folded acme/open", "v2: folded acme/closed"]


def test_the_head_is_pushed_again_once_it_holds_nothing_private(merge: HubMerge, hub: FakeHub) -> None:
    make_public(hub)
    merge.push("open", 1)
    assert merge.once().code == 0
    merge.drop("local", 2)
    assert merge.once().code == 0
    assert history(hub) == ["v1: folded acme/open"]
    assert merge.mergd("rollback", "v1").code == 0
    assert merge.once().code == 0
    assert held(hub) == published(merge, 1)
    assert "v2" not in tags(hub)


@pytest.mark.parametrize("how", [{"private": True}, {"gated": "manual"}])
def test_a_base_model_that_is_not_public_withholds_all(merge: HubMerge, hub: FakeHub, how: dict[str, Any]) -> None:
    make_public(hub)
    base = hub.repositories[BASE]
    base.private, base.gated = how.get("private", False), how.get("gated", False)
    merge.push("open", 1)
    done = merge.once()
    assert done.code == 0
    assert f"the base model {BASE} is private or gated" in done.err
    assert history(hub) == []


def test_private_sources_are_pushed_where_that_is_wanted(new: Callable[..., HubMerge], hub: FakeHub) -> None:
    merge = new(**{"hub.publish_private_sources": True})
    make_public(hub)
    merge.drop("local", 1)
    assert merge.once().code == 0
    assert history(hub) == ["v1: folded local"]
    assert held(hub)["README.md"] != b"to be replaced"


def test_the_token_that_writes_is_nowhere(merge: HubMerge, hub: FakeHub) -> None:
    for route in ("look", "commit"):
        hub.fault(ROUTES[route], Status(401, {"X-Error-Message": f"bad token {WRITER}"}))
    with merge.running("run") as daemon:
        merge.drop("a", 1)
        again_until(daemon, lambda: pushed(merge) == 1)
        seen = [Path(f"/proc/{daemon.pid}/{name}").read_bytes() for name in ("environ", "cmdline")]
        stop(daemon)
    assert WRITER in {request.token for request in hub.requests}
    seen += [
        daemon.err.encode(),
        *(merge.mergd(*words).out.encode() for words in (["status"], ["show", "v1"], ["log"])),
    ]
    seen += [path.read_bytes() for path in merge.state.rglob("*") if path.is_file()]
    seen += [path.read_bytes() for path in (merge.root / "hf").rglob("*") if path.is_file()]
    forms = WRITER.encode(), quote(WRITER, safe="").encode(), base64.b64encode(WRITER.encode())
    assert not [form for form in forms for text in seen if form in text]


def test_the_token_that_reads_does_not_write_and_the_other_does_not_read(merge: HubMerge, hub: FakeHub) -> None:
    merge.push("open", 1)
    assert merge.once().code == 0
    for request in hub.requests:
        written = TARGET in request.path or "/api/repos/" in request.path or "validate-yaml" in request.path
        assert request.token == (WRITER if written else None if "/lfs/" in request.path else TOKEN), request


def test_what_was_published_is_not_folded_back(new: Callable[..., HubMerge], hub: FakeHub) -> None:
    merge = new(**{"hub.publish_to": "acme/merged"})
    hub.tokens[WRITER] = Account("writer", ("acme",))
    merge.push("open", 1)
    for _ in range(3):
        assert merge.once().code == 0
    assert list(merge.states()) == ["acme/open"]


# -------------------------------------------------------------------------------------------------------- the settings


def test_the_head_is_pushed_when_a_repository_is_first_named(merge: HubMerge, hub: FakeHub) -> None:
    set_in(merge.config, **{"hub.publish_to": '""'})
    for seed, name in enumerate(("a", "b"), 1):
        merge.drop(name, seed)
        assert merge.once().code == 0
    set_in(merge.config, **{"hub.publish_to": f'"{TARGET}"'})
    assert merge.once().code == 0
    assert history(hub) == ["v2: folded b"]


def test_a_version_whose_files_were_dropped_is_passed_over(new: Callable[..., HubMerge], hub: FakeHub) -> None:
    merge = new(keep_last=1, keep_within=0)
    for seed, name in enumerate(("a", "b", "c"), 1):
        hub.fault(ROUTES["look"], Status(503))
        merge.drop(name, seed)
        assert merge.once().code == 0
        hub.faults.clear()
    with merge.running("run") as daemon:
        again_until(daemon, lambda: pushed(merge) == 3)
        stop(daemon)
        assert "v1 is not pushed: its files were dropped" in daemon.err
    assert "v3: folded c" in history(hub)
    assert held(hub) == published(merge, 3)


@pytest.mark.parametrize("token", ["missing", "merged-token"])
def test_a_missing_token_is_misconfigured_at_the_start(merge: HubMerge, token: str) -> None:
    set_in(merge.config, **{"hub.write_token": f'"{merge.root / token if token == "missing" else token}"'})
    done = merge.once()
    assert done.code == 78
    assert "hub.write_token" in done.err


def test_a_relative_token_is_a_credential_of_the_service_managers(merge: HubMerge, hub: FakeHub) -> None:
    set_in(merge.config, **{"hub.write_token": '"write-token"'})
    merge.drop("a", 1)
    with merge.running("run", CREDENTIALS_DIRECTORY=str(merge.root)) as daemon:
        eventually(lambda: pushed(merge) == 1)
        stop(daemon)


def test_a_repository_without_a_token_is_misconfigured(merge: HubMerge) -> None:
    set_in(merge.config, **{"hub.write_token": '""'})
    done = merge.mergd("status")
    assert done.code == 78
    assert "write_token" in done.err
