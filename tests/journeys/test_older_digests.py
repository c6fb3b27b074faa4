"""A state whose digests are not those of now: every command that needs them says so, and none calls its files damaged."""

import hashlib
import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from support.merges import Sandbox


def sealed_by_sha256(manifest: Path) -> None:
    """Write a manifest as it was before it said what its files' digests are."""
    said = json.loads(manifest.read_text())
    del said["digests"]
    for file in said["slots"] + said["model"]:
        file["sha256"] = file.pop("blake3")
    text = json.dumps(said | {"sha256": "0" * 64}, indent=1, sort_keys=True) + "\n"
    rest = "".join(line for line in text.splitlines(keepends=True) if not line.startswith(' "sha256"'))
    line = f' "sha256": "{hashlib.sha256(rest.encode()).hexdigest()}"'
    manifest.unlink()
    manifest.write_text(text.replace(f' "sha256": "{"0" * 64}"', line))


@pytest.fixture
def older(merge: Sandbox) -> Sandbox:
    """A merge of two versions, made by a mergd whose digests were sha256."""
    for name, seed in {"a": 1, "b": 2}.items():
        merge.drop(name, seed)
        merge.fold_all()
    for manifest in merge.store.versions.glob("*/manifest.json"):
        sealed_by_sha256(manifest)
    with closing(sqlite3.connect(merge.store.database)) as database, database:
        assert database.execute("DELETE FROM pins WHERE name = 'digests'").rowcount == 1
    return merge


COMMANDS = {
    "run": ["run", "--once"], "verify": ["verify"], "rebuild": ["rebuild", "--force"], "rollback": ["rollback", "v1"],
    "export": ["export", "v1", "exported"], "lora": ["export", "v1", "exported", "--lora", "2"],
    "deep": ["check", "--deep", "watch/c"],
}  # fmt: skip


@pytest.mark.parametrize("words", COMMANDS.values(), ids=COMMANDS)
def test_it_is_said_and_nothing_is_called_damaged(older: Sandbox, words: list[str]) -> None:
    older.drop("c", 3)
    before = older.weight_files(1) | older.weight_files(2)
    ended = older.mergd(*words)
    assert ended.code == 78, ended.err
    assert "whose digests were sha256" in ended.err
    assert "mergd init" in ended.err
    assert not any(version.damaged for version in older.versions())
    assert older.weight_files(1) | older.weight_files(2) == before
