"""A merge whose checkpoints come from a namespace of a Hub on the loopback, driven by the real commands."""

import json
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from fakehub import Account, FakeHub
from support.commands import Command, Ended, mergd, running
from support.merges import Sandbox
from support.models import Model, drop_adapter, save_model, tiny_base

NAMESPACE, BASE, TOKEN = "acme", "acme/base", "hf_canary0123456789"
OF_BASE = f"base_model:finetune:{BASE}"
OWNER = Account("ada", (NAMESPACE,))


@dataclass(frozen=True)
class HubMerge(Sandbox):
    """A merge of a namespace, and its Hub."""

    hub: FakeHub

    @property
    def environment(self) -> dict[str, str]:
        """What makes the client ask this Hub, with a cache of its own."""
        return {"HF_ENDPOINT": self.hub.url, "HF_HOME": str(self.root / "hf"), "HF_TOKEN": TOKEN}

    def mergd(self, command: str, *arguments: object) -> Ended:
        """Run `mergd COMMAND ARGUMENTS` with this merge's configuration and Hub."""
        return mergd(command, "-c", self.config, *arguments, at=self.root, environment=self.environment)

    def running(self, command: str, *arguments: object, **environment: str) -> AbstractContextManager[Command]:
        """Run a command beside the test."""
        asked = self.environment | environment
        return running(command, "-c", self.config, *arguments, at=self.root, environment=asked)

    def push(self, name: str, model: Mapping[str, Any] | int, more: Mapping[str, bytes] = {}, **how: Any) -> str:
        """Push a checkpoint to the namespace; a number is a fine-tune's seed. Returns the commit."""
        weights = self.fine_tuned(model) if isinstance(model, int) else model
        files = files_of(save_model(self.root / f"aside-{name}-{len(self.hub.asked)}", weights))
        return self.hub.push(f"{NAMESPACE}/{name}", files | dict(more), **({"tags": [OF_BASE]} | how))

    def push_adapter(self, name: str) -> str:
        """Push an adapter of rank 4."""
        files = files_of(drop_adapter(self.root / f"aside-{name}"))
        return self.hub.push(f"{NAMESPACE}/{name}", files, tags=[f"base_model:adapter:{BASE}"])

    def once(self) -> Ended:
        """Fold what is there now."""
        return self.mergd("run", "--once")

    def hub_states(self) -> dict[str, str]:
        """Return the state of the newest row of each repository, without the namespace."""
        return {row.name.removeprefix(f"{NAMESPACE}/"): row.state for row in self.checkpoints()}

    def status(self) -> dict[str, Any]:
        """Return what status.json says, as far as it is there."""
        path = self.state / "status.json"
        found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"trouble": "", "sources": ""}
        return found

    def spooled(self) -> list[str]:
        """Return the files in the spool."""
        return sorted(str(path.relative_to(self.store.spool)) for path in self.store.spool.rglob("*") if path.is_file())

    def asked(self, pattern: str = "") -> list[str]:
        """Return what the Hub was asked by commands, as far as it has this text in it."""
        return [asked for asked in self.hub.asked if pattern in asked]


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    """A Hub on the loopback; journeys/conftest.py hands it on."""
    with FakeHub(page_size=2, keep_alive=True) as hub:
        yield hub


@pytest.fixture
def on_hub(hub: FakeHub, tmp_path: Path) -> Callable[..., HubMerge]:
    """Initialise a merge of its namespace: `on_hub(on_change="add")`."""
    return lambda **settings: hub_merge(tmp_path, hub, **settings)


def stop(daemon: Command) -> None:
    """Stop a daemon as systemd does; it has to end well."""
    daemon.send(signal.SIGTERM)
    assert daemon.ended().code == 0, daemon.err
    assert "Traceback" not in daemon.err


def files_of(folder: Path) -> dict[str, bytes]:
    """Return the files of a folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def hub_merge(
    root: Path,
    hub: FakeHub,
    watch: bool = False,
    model: Model | None = None,
    account: Account = OWNER,
    rule: str = "opcm",
    **settings: Any,
) -> HubMerge:
    """Initialise, by the command, a merge of the namespace; the base model lies there too."""
    merge = HubMerge(root, tiny_base() if model is None else model, hub)
    hub.tokens[TOKEN] = account
    hub.push(BASE, files_of(save_model(merge.base, merge.model)))
    values = {"existing": "fold", "quiet": 0, "quiet_unsure": 0, "hub.poll": 1, "rescan": 1} | settings
    words = [word for key, value in values.items() for word in ("--set", f"{key}={json.dumps(value)}")]
    if watch:
        merge.watch.mkdir()
        words += ["--watch", str(merge.watch)]
    done = mergd("init", "--base", BASE, "--hub", NAMESPACE, "--rule", rule, "--state", merge.state, "--config", merge.config, *words,
                 at=root, environment=merge.environment)  # fmt: skip
    assert done.code == 0, done.err
    hub.asked.clear()
    return merge
