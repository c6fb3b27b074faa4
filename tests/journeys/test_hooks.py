"""Whole trips of what the configuration's hooks are told: in order, at least once, and never at anybody else's cost."""

import base64
import json
import os
import signal
import stat
import threading
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import torch
from support.commands import Command, eventually
from support.merges import Sandbox, make_merge
from support.recorder import Post, Recorder, recording

KEY = "canary+key/0123456789"


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    with recording() as recorder:
        yield recorder


@pytest.fixture
def new(tmp_path: Path) -> Callable[..., Sandbox]:
    """Make a merge with these hooks: `new(deploy={"url": ...})`."""
    return lambda **hooks: make_merge(tmp_path / "merge", hook=hooks)


def stop(daemon: Command) -> None:
    daemon.send(signal.SIGTERM)
    assert daemon.ended().code == 0, daemon.err
    assert "Traceback" not in daemon.err


def folded(merge: Sandbox, count: int) -> bool:
    status = merge.store.root / "status.json"
    return status.exists() and json.loads(status.read_text())["folded"] >= count


def hooks_line(merge: Sandbox) -> str:
    """Return what `mergd status` says of the hooks."""
    return next(line for line in merge.mergd("status").out.splitlines() if line.startswith("hooks"))


def wrong(merge: Sandbox, name: str) -> Path:
    """Drop what will be refused."""
    return merge.drop(name, {"other.weight": torch.zeros(3)})


# ------------------------------------------------------------------------------------------------------- what is told


def test_each_move_and_each_refusal_is_told_in_order(new: Callable[..., Sandbox], recorder: Recorder) -> None:
    merge = new(deploy={"url": f"{recorder.url}/news"})
    merge.drop("a", 1)
    assert merge.mergd("run", "--once").code == 0
    wrong(merge, "b")
    assert merge.mergd("run", "--once").code == 0
    merge.drop("c", 2)
    assert merge.mergd("run", "--once").code == 0
    assert merge.mergd("rollback", "v1").code == 0
    assert merge.mergd("remove", "a").code == 0
    assert merge.mergd("rollback", "v1").code == 0
    assert merge.mergd("publish", "--scale", "0.5").code == 0
    kinds = ["fold", "refused", "fold", "rollback", "remove", "rollback", "read-out"]
    assert recorder.told() == list(zip(kinds, [1, None, 2, 1, 3, 1, 4], strict=True))
    told = [post.json for post in recorder.posts]
    assert [item["seq"] for item in told] == [1, 2, 3, 4, 5, 6, 7]
    moves = [(None, 1), (None, None), (1, 2), (2, 1), (1, 3), (3, 1), (1, 4)]
    assert [(item["from"], item["to"]) for item in told] == moves
    assert told[1]["path"] == str(merge.watch / "b")
    assert "other.weight" in told[1]["why"]
    versions = {version.number: version for version in merge.versions()}
    for item in told:
        if item["version"]:
            assert item["path"] == str(merge.store.model(item["version"]))
            assert item["digest"] == versions[item["version"]].digest
    assert hooks_line(merge).endswith("deploy: told of all")


def test_a_person_who_refuses_is_named(new: Callable[..., Sandbox], recorder: Recorder) -> None:
    merge = new(deploy={"url": recorder.url})
    merge.drop("a", 1)
    assert merge.mergd("pause").code == 0
    merge.mergd("run", "--once")
    assert merge.mergd("refuse", "a", "--why", "not ours").code == 0
    (told,) = [post.json for post in recorder.posts]
    assert (told["kind"], told["who"]) == ("refused", f"uid {os.getuid()}")
    assert "not ours" in told["why"]


def test_a_hook_that_is_added_later_is_not_told_the_past(new: Callable[..., Sandbox], recorder: Recorder) -> None:
    merge = new()
    merge.drop("a", 1)
    assert merge.mergd("run", "--once").code == 0
    with merge.config.open("a") as file:
        file.write(f'\n[hook.late]\nurl = "{recorder.url}"\n')
    with merge.running("run") as daemon:
        merge.drop("b", 2)
        eventually(lambda: recorder.told())
        stop(daemon)
    assert recorder.told() == [("fold", 2)]


def test_init_writes_a_hook_as_it_is_read(new: Callable[..., Sandbox], recorder: Recorder) -> None:
    merge = new(one={"command": ["tee", "a b"]}, two={"url": recorder.url, "retry": "12h"})
    assert merge.settings.hook["one"].command == ("tee", "a b")
    assert merge.settings.hook["two"].retry == 12 * 3600
    assert set(tomllib.loads(merge.config.read_text())["hook"]["two"]) == {"url", "retry"}


# --------------------------------------------------------------------------------------------------------- its end is ours


def test_a_kill_between_telling_and_noting_tells_again_and_loses_nothing(
    new: Callable[..., Sandbox], recorder: Recorder
) -> None:
    merge = new(deploy={"url": recorder.url})
    arrived = threading.Event()

    def hold(post: Post) -> int:
        """Take a notice, and answer only once its sender is dead."""
        arrived.set()
        assert dead.wait(60)
        return 204

    for number in (1, 2, 3):
        dead = threading.Event()
        arrived.clear()
        recorder.answer = hold
        with merge.running("run") as daemon:
            merge.drop(f"c{number}", number)
            assert arrived.wait(60)
            eventually(lambda number=number: folded(merge, number))  # type: ignore[misc]
            daemon.send(signal.SIGKILL)
            daemon.ended()
        dead.set()
    recorder.answer = lambda post: 204
    assert merge.mergd("run", "--once").code == 0
    posts = {post.json["seq"]: post for post in recorder.posts}
    assert [(posts[seq].json["kind"], posts[seq].json["version"]) for seq in (1, 2, 3)] == [
        ("fold", 1), ("fold", 2), ("fold", 3),
    ]  # fmt: skip
    told = [post.json["seq"] for post in recorder.posts]
    assert len(told) > 3  # some came twice
    assert told == sorted(told)
    assert {post.headers["webhook-id"] for post in recorder.posts if post.json["seq"] == 1} == {posts[1].json["id"]}


def test_one_that_hangs_delays_neither_folding_nor_others_nor_the_end(
    new: Callable[..., Sandbox], recorder: Recorder
) -> None:
    merge = new(
        slow={"command": ["sleep", "1000"], "timeout": "1h"},
        deaf={"socket": str(Path("/nonexistent/unit"))},
        quick={"url": recorder.url},
    )
    with merge.running("run") as daemon:
        for number in (1, 2, 3):
            merge.drop(f"c{number}", number)
            eventually(lambda number=number: len(recorder.told()) == number)  # type: ignore[misc]
        line = hooks_line(merge)
        stop(daemon)
    assert "slow: 3 to be told" in line
    assert "deaf: 3 to be told, last error: nobody answers at /nonexistent/unit" in line
    assert "quick: told of all" in line
    assert recorder.told() == [("fold", 1), ("fold", 2), ("fold", 3)]


def test_what_cannot_be_delivered_is_counted_and_the_next_one_is_told(
    new: Callable[..., Sandbox], recorder: Recorder
) -> None:
    merge = new(deploy={"url": f"{recorder.url}/canary", "retry": 0})
    recorder.answer = lambda post: 503
    merge.drop("a", 1)
    assert merge.mergd("run", "--once").code == 0
    recorder.answer = lambda post: 204
    merge.drop("b", 2)
    ended = merge.mergd("run", "--once")
    assert ended.code == 0
    assert recorder.told() == [("fold", 1), ("fold", 2)]
    assert "1 undelivered" in hooks_line(merge)
    standing = merge.mergd("status", "--json").json["hooks"]["deploy"]
    assert standing["undelivered"] == 1
    assert standing["last_undelivered"]["notice"] == 1
    assert standing["last_undelivered"]["why"] == f"{recorder.url} answered 503"


def test_a_reload_tries_again_at_once_by_the_new_settings(new: Callable[..., Sandbox], recorder: Recorder) -> None:
    merge = new(deploy={"command": ["false"]})
    with merge.running("run") as daemon:
        merge.drop("a", 1)
        eventually(lambda: "it ended with 1" in (merge.mergd("status").out))
        text = merge.config.read_text()
        merge.config.write_text(text.replace('command = ["false"]', f'url = "{recorder.url}"'))
        daemon.send(signal.SIGHUP)
        eventually(lambda: recorder.told() == [("fold", 1)])
        merge.config.write_text(text.replace('command = ["false"]', 'url = "http://a"\nsecret = "/nonexistent/key"'))
        daemon.send(signal.SIGHUP)
        eventually(lambda: "the new configuration is not taken" in daemon.err)
        merge.drop("b", 2)
        eventually(lambda: recorder.told() == [("fold", 1), ("fold", 2)])
        stop(daemon)


def test_a_daemon_without_the_key_of_a_hook_does_not_start_and_a_rollback_works(
    new: Callable[..., Sandbox], tmp_path: Path, recorder: Recorder
) -> None:
    merge = new(deploy={"url": recorder.url, "secret": str(tmp_path / "key")})
    (tmp_path / "key").write_text(KEY)
    for number in (1, 2):
        merge.drop(f"c{number}", number)
        assert merge.mergd("run", "--once").code == 0
    (tmp_path / "key").unlink()
    assert merge.mergd("run", "--once").code == 78
    assert merge.mergd("rollback", "v1").code == 0
    (tmp_path / "key").write_text(KEY)
    assert merge.mergd("run", "--once").code == 0
    assert recorder.told() == [("fold", 1), ("fold", 2), ("rollback", 1)]


# ------------------------------------------------------------------------------------------------------------ programs


def test_a_command_gets_the_news_and_what_it_writes_is_its_owners(new: Callable[..., Sandbox]) -> None:
    script = "cat; env >&2; echo restarted >&2"
    merge = new(deploy={"command": ["sh", "-c", script]})
    merge.drop("a", 1)
    with merge.running("run", HF_TOKEN="hf_canary", CANARY="canary") as daemon:
        eventually(lambda: "hook deploy: notice 1 (fold) is told: restarted" in daemon.err)
        stop(daemon)
    log = merge.state / "logs" / "hook-deploy.log"
    assert stat.S_IMODE(log.stat().st_mode) == 0o600
    assert stat.S_IMODE(log.parent.stat().st_mode) == 0o700
    assert '"kind": "fold"' in log.read_text()
    assert "canary" not in log.read_text()


# ------------------------------------------------------------------------------------------------------------- secrets


def test_keys_and_addresses_are_nowhere(new: Callable[..., Sandbox], recorder: Recorder, tmp_path: Path) -> None:
    secret, path = tmp_path / "key", "canary-path"
    secret.write_text(KEY)
    address = f"http://eve:canary-word@127.0.0.1:{recorder.port}/{path}?token=canary-query"
    merge = new(
        deploy={"url": address, "secret": str(secret)}, lost={"url": "http://u:canary-word@127.0.0.1:9/canary-path"}
    )
    recorder.answer = lambda post: 500 if len(recorder.posts) < 1 else 204
    with merge.running("run") as daemon:
        merge.drop("a", 1)
        eventually(lambda: len(recorder.posts) >= 2)
        eventually(lambda: "told" in hooks_line(merge) and "http://127.0.0.1:9: " in hooks_line(merge))
        seen: list[bytes] = [Path(f"/proc/{daemon.pid}/{name}").read_bytes() for name in ("environ", "cmdline")]
        seen += [merge.mergd(*words).out.encode() for words in (["status"], ["status", "--json"], ["log"])]
        stop(daemon)
    post = recorder.posts[-1]
    assert post.signed_by(KEY.encode())
    assert post.path == f"/{path}?token=canary-query"
    seen += [daemon.err.encode(), *(post.body for post in recorder.posts)]
    seen += [file.read_bytes() for file in merge.state.rglob("*") if file.is_file()]
    words: list[Any] = [KEY, quote(KEY, safe=""), base64.b64encode(KEY.encode()).decode()]
    words += ["canary-word", path, "canary-query"]
    assert not [word for word in words for text in seen if word.encode() in text]
