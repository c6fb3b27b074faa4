"""A real daemon is looked at: its file, its port, and the Hub's calls."""

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from fakehub import FakeHub
from support.commands import Command, eventually
from support.hub import HubMerge, hub_merge
from support.merges import Sandbox, set_in
from support.scraping import Answer, Scrape, ask, free_port, scrape

from mergd.daemon.observing import serve
from mergd.daemon.settings import validate
from mergd.daemon.webhook import APART
from mergd.state.errors import Misconfigured

SECRET = "canary0123456789"
CALL = {"event": {"action": "update", "scope": "repo.content"}, "repo": {"type": "model", "name": "acme/b"}}


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def merge(merge: Sandbox, port: int) -> Sandbox:
    """A merge whose figures are to be had both ways."""
    listens(merge, port)
    set_in(merge.config, quiet='"0.1s"', **{"metrics.file": json.dumps(str(merge.root / "mergd.prom"))})
    return merge


def listens(merge: Sandbox, port: int | str) -> None:
    set_in(merge.config, **{"metrics.listen": json.dumps(f"127.0.0.1:{port}" if port else "")})


def answer(port: int, path: str) -> Answer | None:
    """Return the answer of whoever listens at a port."""
    try:
        return ask(port, path)
    except ConnectionError:
        return None


def healthy(port: int) -> bool:
    found = answer(port, "/healthz")
    return found is not None and found.status == 200


@contextmanager
def observed(merge: Sandbox, port: int) -> Iterator[Command]:
    """Run a daemon, once its port says that all is well."""
    with merge.running("run") as command:
        eventually(partial(healthy, port))
        yield command


def at_the_port(port: int) -> Scrape:
    return scrape(ask(port, "/metrics").text)


def head(look: Any) -> float:
    """Return which head a scrape shows."""
    found: Scrape = look()
    return found.value("mergd_head_version", merge="mergd")


def test_a_fold_is_seen_at_the_port_and_in_the_file(merge: Sandbox, port: int) -> None:
    with observed(merge, port) as command:
        merge.drop("a", 1)
        eventually(lambda: head(partial(at_the_port, port)) == 1)
        eventually(lambda: head(lambda: scrape((merge.root / "mergd.prom").read_text())) == 1)
        found = at_the_port(port)
        assert found.names >= scrape((merge.root / "mergd.prom").read_text()).names
        assert found.value("mergd_folds_total") == 1
        assert time.time() - found.value("mergd_last_turn_timestamp_seconds") < 30
        command.send(signal.SIGTERM)
        assert command.ended().code == 0
    assert answer(port, "/healthz") is None


def test_trouble_is_seen(merge: Sandbox, port: int) -> None:
    set_in(merge.config, rescan='"0.2s"')
    with observed(merge, port):
        merge.watch.rename(merge.root / "elsewhere")
        eventually(lambda: ask(port, "/healthz").status == 503)
        said = ask(port, "/healthz").text
        assert str(merge.watch) in said
        assert len(said.splitlines()) == 1
        eventually(lambda: at_the_port(port).value("mergd_trouble") == 1)
        (merge.root / "elsewhere").rename(merge.watch)
        eventually(partial(healthy, port))


def test_it_stops_at_once_though_somebody_is_still_connected(merge: Sandbox, port: int) -> None:
    with observed(merge, port) as command, socket.create_connection(("127.0.0.1", port)) as silent:
        silent.sendall(b"GET /metrics HTTP/1.1\r\n")
        command.send(signal.SIGTERM)
        assert command.ended().code == 0


def test_another_port_is_taken_at_sighup(merge: Sandbox, port: int) -> None:
    with observed(merge, port) as command:
        other = free_port()
        listens(merge, other)
        command.send(signal.SIGHUP)
        eventually(partial(healthy, other))
        assert answer(port, "/healthz") is None
        listens(merge, "")
        command.send(signal.SIGHUP)
        eventually(lambda: answer(other, "/healthz") is None)
        merge.drop("a", 1)
        eventually(lambda: len(merge.versions()) == 1)


def test_a_port_that_is_taken_at_sighup_stops_nothing(merge: Sandbox, port: int) -> None:
    with observed(merge, port) as command, socket.create_server(("127.0.0.1", 0)) as taken:
        listens(merge, taken.getsockname()[1])
        command.send(signal.SIGHUP)
        eventually(lambda: "nobody is told of the figures" in command.err)
        merge.drop("a", 1)
        eventually(lambda: len(merge.versions()) == 1)


def test_a_port_that_is_taken_at_the_start_stops_nothing_and_is_taken_at_sighup(merge: Sandbox, port: int) -> None:
    merge.drop("a", 1)
    taken = socket.create_server(("127.0.0.1", port))
    with taken, merge.running("run") as command:
        eventually(lambda: len(merge.versions()) == 1)
        assert f"nobody is told of the figures: metrics.listen: port {port} of 127.0.0.1 cannot be had" in command.err
        taken.close()
        command.send(signal.SIGHUP)  # with nothing changed
        eventually(partial(healthy, port))


def test_a_port_that_others_reach_is_refused(merge: Sandbox) -> None:
    set_in(merge.config, **{"metrics.listen": '"0.0.0.0:9190"'})
    done = merge.mergd("run")
    assert done.code == Misconfigured.exit_code
    assert "metrics.listen" in done.err


def test_without_the_packages_of_the_port_it_says_what_to_install(
    merge: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "mergd.daemon.serving", None)
    with pytest.raises(Misconfigured) as raised:
        serve(merge.settings, bytes, str, lambda: None)
    assert raised.value.hint == "pip install 'mergd[http]'"


def test_a_file_that_cannot_be_written_stops_no_daemon(merge: Sandbox, port: int) -> None:
    set_in(merge.config, **{"metrics.file": json.dumps(str(merge.root / "no" / "such.prom"))})
    with observed(merge, port) as command:
        merge.drop("a", 1)
        eventually(lambda: head(partial(at_the_port, port)) == 1)
        eventually(lambda: "is out of date" in command.err)


def test_a_run_from_cron_writes_the_file_at_its_end_and_leaves_the_port(merge: Sandbox, port: int) -> None:
    merge.drop("a", 1)
    merge.drop("b", {name: tensor for name, tensor in merge.fine_tuned(3).items() if "tall" not in name})
    with socket.create_server(("127.0.0.1", port)):
        done = merge.mergd("run", "--once")
    assert (done.code, "figures" in done.err) == (0, False)
    found = scrape((merge.root / "mergd.prom").read_text())
    assert found.value("mergd_head_version", merge="mergd") == found.value("mergd_folds_total") == 1
    assert found.value("mergd_refusals_total", code="missing-weights") == 1
    assert found.value("mergd_disk_used_bytes") > 0


def test_nobody_pays_for_what_is_not_asked_for() -> None:
    script = "import sys, mergd.daemon.cli, mergd.daemon.service; print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert not {name.partition(".")[0] for name in done.stdout.split()} & {"prometheus_client", "starlette", "uvicorn"}


# -------------------------------------------------------------------------------------------------- the Hub's calls


@pytest.fixture
def called(tmp_path: Path, port: int) -> Iterator[HubMerge]:
    """A merge of a namespace that is polled once an hour, and whose Hub may call."""
    secret = tmp_path / "hook-secret"
    secret.write_text(SECRET)
    given: dict[str, Any] = {"hub.poll": 3600, "hub.webhook_secret": str(secret), "metrics.listen": f"127.0.0.1:{port}"}
    with FakeHub(keep_alive=True) as hub:
        yield hub_merge(tmp_path, hub, **given)


def listings(merge: HubMerge) -> list[str]:
    """Return how often the namespace was listed."""
    return [asked for asked in merge.asked("GET /api/models") if "/api/models/" not in asked]


def call(port: int, secret: str = SECRET) -> int:
    return ask(port, "/hub/webhook", "POST", json.dumps(CALL).encode(), X_Webhook_Secret=secret).status


def test_a_call_brings_what_is_new_and_a_flood_brings_no_more_polls(called: HubMerge, port: int) -> None:
    with called.running("run"):
        eventually(partial(healthy, port))
        eventually(lambda: listings(called))
        called.push("b", 1)
        called.hub.asked.clear()
        began = time.monotonic()
        assert {call(port) for _ in range(200)} == {202}
        eventually(lambda: called.hub_states().get("b") == "folded")
        polls = len(listings(called))
        assert 1 <= polls <= 2 + (time.monotonic() - began) / APART


def test_whoever_does_not_know_the_secret_wakes_nothing(called: HubMerge, port: int) -> None:
    with called.running("run"):
        eventually(partial(healthy, port))
        eventually(lambda: listings(called))
        called.hub.asked.clear()
        assert {call(port, secret) for secret in ("", "wrong", SECRET[:-1])} == {401}
        time.sleep(1.0)
        assert not listings(called)


def test_the_secret_is_nowhere_but_in_its_file(called: HubMerge, port: int) -> None:
    with called.running("run") as command:
        eventually(partial(healthy, port))
        assert call(port) == 202
        assert call(port, "wrong") == 401
        shown = ask(port, "/metrics").text + called.mergd("status", "--json").out + command.err
    written = [path.read_bytes() for path in called.state.rglob("*") if path.is_file()]
    assert SECRET not in shown
    assert not any(SECRET.encode() in data for data in (*written, called.config.read_bytes()))


def test_where_the_secret_is_not_there_it_does_not_start(called: HubMerge) -> None:
    (called.root / "hook-secret").unlink()
    done = called.mergd("run")
    assert done.code == Misconfigured.exit_code
    assert "hub.webhook_secret: there is no secret in" in done.err


def test_the_settings_of_the_port_are_checked_together() -> None:
    values = {"base_model": "org/name", "state": "/state", "hub": {"namespace": "acme", "webhook_secret": "hook"}}
    with pytest.raises(Misconfigured, match=r"needs metrics\.listen"):
        validate(values, "mergd.toml")
