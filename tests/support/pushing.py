"""A merge whose versions are pushed to a repository of a Hub on the loopback, and what a test looks at there."""

import signal
from pathlib import Path
from typing import Any

from fakehub import Account, FakeHub
from support.commands import Command
from support.hub import HubMerge, hub_merge

TARGET, WRITER = "org/merged", "hf_canary_writer+/9876543210"


def pushing_merge(root: Path, hub: FakeHub, **settings: Any) -> HubMerge:
    """Initialise a merge that watches a folder and a namespace, and pushes with a token of its own."""
    hub.tokens[WRITER] = Account("writer", ("org",))
    token = root / "write-token"
    token.write_text(f"{WRITER}\n")
    where: dict[str, Any] = {"hub.publish_to": TARGET, "hub.write_token": str(token)}
    return hub_merge(root, hub, watch=True, **(where | settings))


def history(hub: FakeHub) -> list[str]:
    """Return the titles of the target's commits, oldest first, without the one that made it."""
    repository = hub.repositories[TARGET]
    commits = list(repository.history(repository.commits[repository.branches["main"]]))[::-1]
    return [commit.title for commit in commits if commit.title != "initial commit"]


def tags(hub: FakeHub) -> dict[str, str]:
    """Return the title of the commit that each tag leads to."""
    repository = hub.repositories[TARGET]
    return {name: repository.commits[commit].title for name, commit in sorted(repository.tags.items())}


def held(hub: FakeHub, revision: str = "main") -> dict[str, bytes]:
    """Return the files of the target at a revision, but for what the Hub itself put there."""
    return {name: data for name, data in hub.files(TARGET, revision).items() if name != ".gitattributes"}


def published(merge: HubMerge, version: int) -> dict[str, bytes]:
    """Return the files of a version's folder."""
    folder = merge.store.model(version)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def pushed(merge: HubMerge) -> int | None:
    """Return the version that was pushed last, by status.json."""
    found: dict[str, int] = merge.status().get("pushed") or {}
    return found.get("version")


def owed(merge: HubMerge) -> dict[str, str]:
    """Return what status.json says of pushing."""
    return {"doing": "", "trouble": ""} | (merge.status().get("push") or {})


def stop(daemon: Command) -> None:
    """End a daemon, and look that it ended well."""
    daemon.send(signal.SIGTERM)
    assert daemon.ended().code == 0, daemon.err
    assert "Traceback" not in daemon.err
