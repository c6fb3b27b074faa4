"""A manifest vouches for itself: by one line, which a shell can check too."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from mergd.state.errors import DamagedFiles
from mergd.state.manifests import read_manifest, text_of

MANIFEST: dict[str, Any] = {
    "version": 7,
    "made_on": {"torch": "2.13.0"},
    "slots": [{"name": "slots-00001.safetensors", "sha256": "0" * 64, "size": 100}],
    "scale": 1.0000000000000002,
    "place": '/watch/caf\u00e9\n "sha256": "00"',
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "manifest.json"


def test_it_is_read_back_as_it_was_written(path: Path) -> None:
    path.write_bytes(text_of(MANIFEST))
    assert read_manifest(path) == MANIFEST
    assert text_of(read_manifest(path)) == path.read_bytes()


def test_a_shell_can_check_it(path: Path) -> None:
    path.write_bytes(text_of(MANIFEST))
    words = ["sh", "-c", "grep -v '^ \"sha256\"' manifest.json | sha256sum"]
    said = subprocess.run(words, cwd=path.parent, capture_output=True, text=True, check=True).stdout.split()[0]
    assert said == json.loads(path.read_text())["sha256"]


def test_each_flipped_bit_is_found(path: Path) -> None:
    text = text_of(MANIFEST)
    for bit in range(8 * len(text)):
        changed = bytearray(text)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        with pytest.raises(DamagedFiles):
            read_manifest(path)


def test_an_older_one_has_no_such_line(path: Path) -> None:
    path.write_text(json.dumps({"version": 7}))
    assert read_manifest(path) == {"version": 7}
