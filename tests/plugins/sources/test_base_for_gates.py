"""A base model in the Hub's cache: a gate that is another user may read it, once one is set, and nothing else is opened."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
from support.merges import Sandbox

from mergd.daemon.opening import open_merge, reopen_merge
from mergd.daemon.progress import Progress
from mergd.daemon.settings import Settings, validate
from mergd.plugins.sources.hub.repository import let_others_read
from mergd.state.history import History


@pytest.fixture
def snapshot(tmp_path: Path) -> Path:
    """A snapshot in a cache that is its owner's alone, as the Hub's client lays it out."""
    before = os.umask(0o077)
    repository = tmp_path / "hub" / "models--acme--base"
    snapshot = repository / "snapshots" / ("c" * 40)
    (snapshot / "sub").mkdir(parents=True)
    (repository / "blobs").mkdir()
    for name in ("model.safetensors", "sub/config.json"):
        blob = repository / "blobs" / name.replace("/", "-")
        blob.write_text(name)
        (snapshot / name).symlink_to(os.path.relpath(blob, (snapshot / name).parent))
    (repository / "refs").mkdir()
    os.umask(before)
    return snapshot


def closed(root: Path) -> set[str]:
    """Return what others may not read."""
    return {str(path.relative_to(root)) for path in (root, *root.rglob("*")) if not path.stat().st_mode & 0o004}


def test_others_read_the_snapshot_and_what_it_leads_to(snapshot: Path) -> None:
    hub = snapshot.parents[2]
    let_others_read(snapshot)
    assert closed(hub) == {".", "models--acme--base/refs"}
    assert not any(path.stat().st_mode & 0o022 for path in hub.rglob("*"))


def gated(merge: Sandbox, **gate: object) -> Settings:
    return validate(merge.settings.model_dump() | {"gate": {"evals": gate}}, "a test")


def test_it_is_opened_for_a_gate_in_a_unit_alone(merge: Sandbox, snapshot: Path) -> None:
    with History(merge.store.database) as history:
        made, pins = open_merge(merge.settings, history, Progress()), history.pins()
    fetched = replace(made, base=replace(made.base, folder=snapshot, commit="c" * 40))
    child = gated(merge, command=["/bin/true"])
    reopen_merge(fetched, merge.settings, child, pins)
    assert str(snapshot.relative_to(snapshot.parents[2])) in closed(snapshot.parents[2])
    reopen_merge(fetched, child, gated(merge, socket="/run/evals.sock"), pins)
    assert closed(snapshot.parents[2]) == {".", "models--acme--base/refs"}
