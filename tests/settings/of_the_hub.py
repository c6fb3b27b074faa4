"""What changes with each setting of the table `hub`; called with a bench of tests/settings/test_every_setting_shows.py."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from fakehub import FakeHub
from support.commands import eventually
from support.hub import BASE, HubMerge, hub_merge
from support.pushing import TARGET, WRITER, history, pushing_merge
from support.scraping import ask, free_port

Place = Callable[[], Path]


@contextmanager
def merge_of(place: Path, *names: str, **settings: Any) -> Iterator[HubMerge]:
    """Give a merge of a namespace, where these were pushed after init."""
    with FakeHub(keep_alive=True) as hub:
        merge = hub_merge(place, hub, **settings)
        for seed, name in enumerate(names):
            merge.push(name, seed)
        yield merge


def folded(place: Path, *names: str, **settings: Any) -> set[str]:
    """Return which of these are folded."""
    with merge_of(place, *names, **settings) as merge:
        assert merge.once().code == 0
        return set(merge.hub_states())


def hub_namespace(place: Place) -> None:
    for allow, listed in (("acme", {"a"}), ("other", set())):
        with merge_of(place(), **{"hub.allow": ["*"]}) as merge:
            merge.push("a", 1)
            text = merge.config.read_text()
            merge.config.write_text(text.replace('namespace = "acme"', f'namespace = "{allow}"'))
            assert merge.once().code == 0
            assert set(merge.hub_states()) == listed


def hub_allow(place: Place) -> None:
    assert folded(place(), "a", "b") == {"a", "b"}
    assert folded(place(), "a", "b", **{"hub.allow": ["*/a"]}) == {"a"}


def hub_deny(place: Place) -> None:
    assert folded(place(), "a", "b", **{"hub.deny": ["*/a"]}) == {"b"}


def hub_base(place: Place) -> None:
    assert folded(place(), "a", **{"hub.base": "acme/another"}) == set()


def hub_poll(place: Place) -> None:
    for poll, found in ((1, True), (3600, False)):
        with merge_of(place(), "a", **{"hub.poll": poll}) as merge, merge.running("run"):
            eventually(partial(has, merge, "a"))
            merge.push("b", 5)
            if found:
                eventually(partial(has, merge, "b"))
            else:
                time.sleep(2.5)  # more than two polls of a second
                assert "b" not in merge.hub_states()


def has(merge: HubMerge, name: str) -> bool:
    """Whether a repository was seen."""
    return name in merge.hub_states()


def hub_spool(place: Place) -> None:
    for room, waits in (("0", True), ("1GB", False)):
        with merge_of(place(), "a", "b", "c", **{"hub.spool": room}) as merge:
            done = merge.once()
            assert set(merge.hub_states().values()) == {"folded"}
            assert ("its turn to be downloaded" in done.err) == waits


def hub_bandwidth(place: Place) -> None:
    large = {"layer.weight": torch.randn(500, 500)}  # a million bytes
    with merge_of(place(), "a", model=large, **{"hub.bandwidth": 500_000}) as merge:
        began = time.monotonic()
        assert merge.once().code == 0
        assert time.monotonic() - began > 1.5
        assert merge.hub_states() == {"a": "folded"}


def hub_stream(place: Place) -> None:
    for stream, times in ((False, 1), (True, 2)):
        with merge_of(place(), "a", **{"hub.stream": stream}) as merge:
            merge.hub.requests.clear()
            assert merge.once().code == 0
            assert merge.hub_states() == {"a": "folded"}
            asked = [one.range or "" for one in merge.hub.requests if "/a/" in one.path and ".safetensors" in one.path]
            assert len(asked) == 1 + times  # the header, too


@contextmanager
def pushed_of(place: Path, public: bool, **settings: Any) -> Iterator[HubMerge]:
    """Give a merge that pushed what it folded of a folder, to a repository that is public or new."""
    with FakeHub() as hub:
        merge = pushing_merge(place, hub, **settings)
        if public:
            hub.push(TARGET, {})
        merge.drop("a", 1)
        assert merge.once().code == 0
        yield merge


def hub_publish_to(place: Place) -> None:
    for target in ("", TARGET, f"{TARGET}-too"):
        with pushed_of(place(), public=False, **{"hub.publish_to": target}) as merge:
            assert set(merge.hub.repositories) == {BASE, target} - {""}


def hub_publish_private_sources(place: Place) -> None:
    for wanted, titles in ((False, []), (True, ["v1: folded a"])):
        with pushed_of(place(), public=True, **{"hub.publish_private_sources": wanted}) as merge:
            assert history(merge.hub)[1:] == titles


def hub_write_token(place: Place) -> None:
    with pushed_of(place(), public=False) as merge:
        assert {request.token for request in merge.hub.requests if TARGET in request.path} == {WRITER}


def hub_webhook_secret(place: Place) -> None:
    """A call wakes a poll long before the next one is due; without a secret, calls are not taken."""
    for secret, status in (("the-secret", 202), ("", 404)):
        folder, port = place(), free_port()
        path = folder / "secret"
        path.write_text(secret)
        called = {"hub.webhook_secret": str(path) if secret else "", "metrics.listen": f"127.0.0.1:{port}"}
        with merge_of(folder, "a", **{"hub.poll": 3600} | called) as merge, merge.running("run"):
            eventually(partial(has, merge, "a"))
            merge.push("b", 5)
            call = {"event": {"action": "update", "scope": "repo.content"}, "repo": {"type": "model", "name": "acme/b"}}
            answer = ask(port, "/hub/webhook", "POST", json.dumps(call).encode(), X_Webhook_Secret="the-secret")
            assert answer.status == status
            if secret:
                eventually(partial(has, merge, "b"))


CASES = {case.__name__.replace("_", ".", 1): case
         for case in (hub_namespace, hub_allow, hub_deny, hub_base, hub_poll, hub_spool, hub_bandwidth, hub_stream,
                      hub_publish_to, hub_publish_private_sources, hub_write_token, hub_webhook_secret)}  # fmt: skip
