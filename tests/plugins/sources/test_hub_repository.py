"""The base model from a Hub: the real client against a small Hub on the loopback."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from fakehub import FakeHub, Silence
from support.merges import Sandbox, set_in
from support.models import CONFIG, Model, load_model, save_model, tiny_base

pytestmark = pytest.mark.long

PATIENCE = 60.0  # seconds that a fetch may take to give up

# The client reads its endpoint and its cache from the environment when it is imported, so that it runs elsewhere.
# It waits between its tries; here it only says for how long it would have.
CLIENT = """
import json, sys, time
waits = []
time.sleep = waits.append
from mergd.plugins.sources.hub.repository import fetch
from mergd.state.errors import MergdError
for line in sys.stdin:
    try:
        snapshot = fetch(*json.loads(line))
        answer = {"folder": str(snapshot.folder), "commit": snapshot.commit}
    except MergdError as error:
        answer = {"error": type(error).__name__, "message": str(error), "hint": error.hint}
    except Exception as error:
        answer = {"error": f"unforeseen {type(error).__name__}", "message": str(error), "hint": ""}
    print(json.dumps(answer | {"waited": sum(waits)}), flush=True)
    waits.clear()
"""


def environment(url: str, cache: Path) -> dict[str, str]:
    """Return the environment of a process whose Hub is at `url`, with a cache of its own and no token."""
    kept = {key: value for key, value in os.environ.items() if not key.upper().startswith(("HF_", "HUGGING"))}
    kept = {key: value for key, value in kept.items() if not key.lower().endswith("_proxy")}
    return kept | {"HF_ENDPOINT": url, "HF_HOME": str(cache), "HF_HUB_DISABLE_TELEMETRY": "1"}


@dataclass(frozen=True)
class Fetched:
    """What a fetch gave: a folder and its commit, or an error."""

    folder: Path = Path()
    commit: str = ""
    error: str = ""
    message: str = ""
    hint: str = ""
    waited: float = field(default=0.0, compare=False)  # seconds between tries


class Client:
    """A process that fetches."""

    def __init__(self, url: str, cache: Path) -> None:
        self.cache = cache
        self._process = subprocess.Popen(
            [sys.executable, "-c", CLIENT],
            env=environment(url, cache),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def fetch(self, name: str, commit: str | None = None) -> Fetched:
        """Call `fetch` there."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps([name, commit]) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        return Fetched(Path(answer.pop("folder", "")), **answer)

    def close(self) -> None:
        self._process.communicate()


@pytest.fixture(scope="module")
def hub() -> Iterator[FakeHub]:
    with FakeHub() as served:
        yield served


@pytest.fixture(scope="module")
def client(hub: FakeHub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    process = Client(hub.url, tmp_path_factory.mktemp("client") / "hf")
    yield process
    process.close()


@pytest.fixture
def asked(hub: FakeHub) -> list[str]:
    """What the Hub is asked from now on."""
    hub.asked.clear()
    return hub.asked


FILES = {"config.json": b"{}\n", "model.safetensors": b"not looked at here", "nested/tokens.txt": b"a\nb\n"}


def content(folder: Path) -> dict[str, bytes]:
    """Return the files of a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ------------------------------------------------------------------------------------------------------ what is there


@pytest.mark.parametrize("revision", ["@main", "", "@{commit}"])
def test_a_revision_is_resolved_to_a_commit_whose_files_are_fetched(
    hub: FakeHub, client: Client, revision: str
) -> None:
    repo = f"org/resolved-{len(revision)}"
    commit = hub.push(repo, FILES)
    fetched = client.fetch(repo + revision.format(commit=commit))
    assert (fetched.error, fetched.commit) == ("", commit)
    assert content(fetched.folder) == FILES


def test_what_was_fetched_at_a_commit_asks_nothing_of_the_hub(hub: FakeHub, client: Client, asked: list[str]) -> None:
    commit = hub.push("org/cached", FILES)
    first = client.fetch("org/cached@main")
    assert asked
    asked.clear()
    hub.push("org/cached", FILES | {"config.json": b'{"moved": true}\n'})
    assert client.fetch("org/cached@main", commit) == first
    assert asked == []


def test_a_branch_that_moved_means_its_new_commit(hub: FakeHub, client: Client) -> None:
    old = hub.push("org/moved", FILES)
    assert client.fetch("org/moved").commit == old
    new = hub.push("org/moved", FILES | {"config.json": b'{"moved": true}\n'})
    fetched = client.fetch("org/moved")
    assert fetched.commit == new
    assert content(fetched.folder)["config.json"] == b'{"moved": true}\n'


def test_what_a_broken_download_left_is_not_taken_for_the_whole(hub: FakeHub, client: Client) -> None:
    commit = hub.push("org/partial", FILES)
    with breaking(hub, "model.safetensors"):
        assert client.fetch("org/partial").error == "Unavailable"
    assert content(client.fetch("org/partial", commit).folder) == FILES


@pytest.mark.parametrize("pinned", [False, True])
def test_what_another_program_fetched_one_file_of_is_not_taken_for_the_whole(
    hub: FakeHub, client: Client, pinned: bool
) -> None:
    repo = f"org/one-file-{pinned}"
    commit = hub.push(repo, FILES)
    script = "import sys; from huggingface_hub import hf_hub_download; hf_hub_download(*sys.argv[1:])"
    env = environment(hub.url, client.cache)
    subprocess.run([sys.executable, "-c", script, repo, "config.json"], env=env, check=True, capture_output=True)
    assert content(client.fetch(repo, commit if pinned else None).folder) == FILES


@contextmanager
def breaking(hub: FakeHub, pattern: str) -> Iterator[None]:
    """Have the Hub fail at paths that match."""
    whole, hub.broken = hub.broken, pattern
    yield
    hub.broken = whole


def test_pickles_and_other_frameworks_weights_are_not_fetched(hub: FakeHub, client: Client, asked: list[str]) -> None:
    pickles = {name: b"never read" for name in ("pytorch_model.bin", "a.pt", "b.pth", "c.ckpt", "nested/d.pkl", "e.h5")}
    hub.push("org/pickles", FILES | pickles)
    assert content(client.fetch("org/pickles").folder) == FILES
    assert not [line for line in asked if any(name in line for name in pickles)]


# ------------------------------------------------------------------------------------------- who can mend what is not


@pytest.mark.parametrize("name", ["org/nothing@main", "org/there@no-such-branch", "org/there@" + "0" * 40])
def test_an_unknown_repository_or_revision_is_misconfigured(hub: FakeHub, client: Client, name: str) -> None:
    hub.push("org/there", FILES)
    fetched = client.fetch(name)
    assert fetched.error == "Misconfigured"
    assert name in fetched.message
    assert fetched.hint


@pytest.mark.parametrize("name", ["org/a b", "a/b/c", "org/..name", ""])
def test_what_is_no_name_of_a_repository_is_misconfigured(client: Client, asked: list[str], name: str) -> None:
    fetched = client.fetch(name)
    assert fetched.error == "Misconfigured"
    assert asked == []


def test_a_gated_repository_is_not_permitted(hub: FakeHub, client: Client) -> None:
    hub.push("org/gated", FILES, gated=True)
    fetched = client.fetch("org/gated")
    assert fetched.error == "NotPermitted"
    assert "gated" in fetched.message
    assert "HF_TOKEN" in fetched.hint


KNOWN = pytest.mark.parametrize("known", [False, True], ids=["by name", "by commit"])


@KNOWN
def test_a_hub_that_fails_is_unavailable_before_long(hub: FakeHub, client: Client, known: bool) -> None:
    commit = hub.push(f"org/failing-{known}", FILES)
    with breaking(hub, "/"):
        fetched = client.fetch(f"org/failing-{known}", commit if known else None)
    assert fetched.error == "Unavailable"
    assert fetched.waited < PATIENCE


@KNOWN
def test_a_hub_that_is_down_is_unavailable_before_long(tmp_path: Path, known: bool) -> None:
    with FakeHub() as gone:
        commit = gone.push("org/base", FILES)
    client = Client(gone.url, tmp_path / "hf")
    try:
        fetched = client.fetch("org/base", commit if known else None)
    finally:
        client.close()
    assert fetched.error == "Unavailable"
    assert fetched.waited < PATIENCE


# ---------------------------------------------------------------------------------------------------- the whole way


class Hubbed:
    """A merge whose base model lies on a Hub, through the real command line."""

    def __init__(self, hub: FakeHub, root: Path) -> None:
        self.hub, self.merge = hub, Sandbox(root, tiny_base())
        self.merge.watch.mkdir()

    def push(self, model: Model) -> str:
        """Push a base model; returns the commit."""
        folder = save_model(self.merge.root / f"pushed-{len(self.hub.repositories)}", model, CONFIG)
        files = content(folder)
        shutil.rmtree(folder)
        return self.hub.push("org/base", files | {"pytorch_model.bin": b"never read"})

    def mergd(self, *words: object) -> "subprocess.CompletedProcess[str]":
        """Run `mergd WORDS` in an interpreter of its own."""
        command = [sys.executable, "-m", "mergd", *map(str, words)]
        env = environment(self.hub.url, self.merge.root / "hf")
        return subprocess.run(command, cwd=self.merge.root, env=env, capture_output=True, text=True, check=False)

    def init(self, base: str) -> "subprocess.CompletedProcess[str]":
        """Run `mergd init` with a base model on the Hub."""
        places = ("--watch", self.merge.watch, "--state", self.merge.state, "--config", self.merge.config)
        return self.mergd("init", "--base", base, "--rule", "task_arithmetic", *places)


@pytest.fixture
def hubbed(tmp_path: Path) -> Iterator[Hubbed]:
    with FakeHub() as served:
        yield Hubbed(served, tmp_path)


def test_the_base_model_stays_at_the_commit_that_init_resolved(hubbed: Hubbed) -> None:
    merge = hubbed.merge
    commit = hubbed.push(merge.model)
    made = hubbed.init("org/base@main")
    assert made.returncode == 0, made.stderr
    set_in(merge.config, quiet="0")
    hubbed.push(tiny_base(seed=9))  # the branch moves on
    hubbed.hub.asked.clear()
    merge.drop("a", 1)
    ran = hubbed.mergd("run", "--once", "-c", merge.config)
    assert ran.returncode == 0, ran.stderr
    assert hubbed.hub.asked == []
    base, tuned = merge.model["layer.matrix.weight"], merge.fine_tuned(1)["layer.matrix.weight"]
    published = load_model(merge.store.current)["layer.matrix.weight"]
    assert torch.allclose(published, base + 0.3 * (tuned - base), atol=1e-6)
    files = {path.name for path in merge.store.model(1).iterdir()}
    assert files == {"README.md", "config.json", "mergd_manifest.json", "model.safetensors"}
    assert not any(path.is_symlink() for path in merge.store.model(1).iterdir())
    assert len(commit) == 40


def test_a_start_that_fetches_the_base_model_asks_systemd_for_more_time(hubbed: Hubbed) -> None:
    merge = hubbed.merge
    hubbed.push(merge.model)
    assert hubbed.init("org/base@main").returncode == 0
    shutil.rmtree(merge.root / "hf")
    hubbed.hub.fault("GET .*/model.safetensors", Silence(3.0))  # what else there is has come by then
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(merge.root / "notify"))
        systemd.settimeout(60)
        given = environment(hubbed.hub.url, merge.root / "hf") | {"NOTIFY_SOCKET": str(merge.root / "notify")}
        command = [sys.executable, "-m", "mergd", "run", "-c", str(merge.config)]
        with subprocess.Popen(command, env=given, stderr=subprocess.DEVNULL) as daemon:
            said: list[str] = []
            try:
                while not (said and said[-1].startswith("READY=1")):
                    said.append(systemd.recv(4096).decode())
            finally:
                daemon.terminate()
        assert daemon.returncode == 0
    fetching = [line for line in said if line.startswith("STATUS=fetching the base model: ")]
    assert len(fetching) >= 2
    assert all(re.search(r" of \S+ \S?B\nEXTEND_TIMEOUT_USEC=[0-9]+$", line) for line in fetching)


def test_bytes_are_told_of_as_they_come(hub: FakeHub, tmp_path: Path) -> None:
    commit = hub.push("org/told", FILES)
    script = """
import sys
from mergd.plugins.sources.hub.repository import fetch
for _ in range(2):
    seen = []
    fetch(sys.argv[1], sys.argv[2], lambda more, whole: seen.append((more, whole)))
    print(sum(more for more, whole in seen), seen[-1][1] if seen else 0)
"""
    done = subprocess.run([sys.executable, "-c", script, "org/told", commit], env=environment(hub.url, tmp_path),
                          capture_output=True, text=True, check=True)  # fmt: skip
    whole = sum(map(len, FILES.values()))
    assert done.stdout.splitlines() == [f"{whole} {whole}", "0 0"]  # what the cache holds does not come


def test_what_the_rules_would_take_is_told_by_headers_alone(hubbed: Hubbed) -> None:
    model = hubbed.merge.model | {"lm_head.weight": hubbed.merge.model["embed_tokens.weight"].clone()}
    folder = save_model(hubbed.merge.root / "pushed", model, CONFIG | {"tie_word_embeddings": True})
    hubbed.hub.push("org/base", content(folder))
    told = hubbed.mergd("rules", "average", "--base", "org/base@main", "--json")
    assert told.returncode == 0, told.stderr
    here = hubbed.mergd("rules", "average", "--base", folder, "--json")
    (remote,), (local,) = (json.loads(done.stdout)["rules"] for done in (told, here))
    assert remote["slots_bytes"] == local["slots_bytes"] > 0
    made = hubbed.init("org/base@main")  # what was looked at only is fetched whole now
    assert made.returncode == 0, made.stderr
    for name, code in (("org/nothing", 78), ("org/empty", 78)):
        hubbed.hub.push("org/empty", {"config.json": b"{}"})
        assert hubbed.mergd("rules", "--base", name).returncode == code


def test_a_base_model_that_is_nowhere_is_answered_in_two_lines(hubbed: Hubbed) -> None:
    made = hubbed.init("org/nothing@main")
    assert made.returncode == 78
    assert "org/nothing@main" in made.stderr
    assert 1 <= len(made.stderr.splitlines()) <= 2
    assert not merge_files(hubbed.merge)


def merge_files(merge: Sandbox) -> list[Path]:
    """Return what an init left."""
    return [path for path in (merge.config, merge.state) if path.exists()]
