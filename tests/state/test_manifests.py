"""A manifest vouches for itself: by one line, which a shell can check too."""

import hashlib
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mergd.state.errors import DamagedFiles, Misconfigured
from mergd.state.manifests import read_manifest, text_of

MANIFEST: dict[str, Any] = {
    "version": 7,
    "made_on": {"torch": "2.13.0"},
    "slots": [{"name": "slots-00001.safetensors", "blake3": "0" * 64, "size": 100}],
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


def without_line(manifest: dict[str, Any]) -> bytes:
    return json.dumps(manifest).encode()


def with_line(manifest: dict[str, Any]) -> bytes:
    text = json.dumps(manifest | {"sha256": "0" * 64}, indent=1, sort_keys=True) + "\n"
    rest = "".join(line for line in text.splitlines(keepends=True) if not line.startswith(' "sha256"'))
    return text.replace("0" * 64, hashlib.sha256(rest.encode()).hexdigest()).encode()


@pytest.mark.parametrize("written", [without_line, with_line])
def test_one_from_before_the_digests_of_now_is_not_called_damaged(
    path: Path, written: Callable[[dict[str, Any]], bytes]
) -> None:
    path.write_bytes(written({"version": 7} | ({"made_on": {}} if written is with_line else {})))
    with pytest.raises(Misconfigured, match="digests were sha256") as raised:
        read_manifest(path)
    assert "mergd init" in raised.value.hint
    path.write_bytes(with_line({"version": 7, "made_on": {}, "digests": "blake3"}))
    assert read_manifest(path) == {"version": 7, "made_on": {}}
