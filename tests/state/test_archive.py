"""The archive: what is pinned there is whole, or it is not there."""

from pathlib import Path

import pytest

from mergd.state.archive import Archive
from mergd.state.store import Store


def pinned(tmp_path: Path) -> Archive:
    """An archive with one source."""
    store = Store(tmp_path / "state")
    store.create()
    draft = store.draft(1)
    (draft.source / "c").mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        (draft.source / "c" / name).write_bytes(b"x")
    archive = Archive(store)
    archive.install(draft, "digest")
    return archive


def test_what_is_kept_no_more_is_gone(tmp_path: Path) -> None:
    archive = pinned(tmp_path)
    archive.keep(["digest"])
    assert archive.place("digest") is not None
    archive.keep([])
    assert archive.place("digest") is None
    assert archive.entries() == []


def test_a_crash_while_a_source_is_removed_leaves_no_half_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = pinned(tmp_path)
    monkeypatch.setattr("shutil.rmtree", lambda path, ignore_errors=False: None)  # the crash: nothing more is removed
    archive.keep([])
    assert archive.place("digest") is None
