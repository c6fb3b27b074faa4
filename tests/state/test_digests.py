"""Digests: BLAKE3, held against its published test vector, and of a file of any size."""

from pathlib import Path

import pytest
from blake3 import blake3

from mergd.state.digests import PIECE, Digest, check_digests, digest_of, digest_of_file
from mergd.state.errors import Misconfigured

ABC = "6437b3ac38465133ffb63b75273a8db548c558465d79db03fd359c6cd5bd9d85"  # of b"abc", as every BLAKE3 has it


def test_they_are_what_b3sum_prints() -> None:
    running = Digest()
    running.update(b"a")
    running.update(memoryview(b"bc"))
    assert running.hexdigest() == digest_of(b"abc") == ABC


@pytest.mark.parametrize("size", [0, 1, PIECE, 2 * PIECE + 1])
def test_a_file_is_hashed_whole_in_pieces(tmp_path: Path, size: int) -> None:
    data = bytes(range(251)) * (size // 251 + 1)
    (tmp_path / "a").write_bytes(data[:size])
    assert digest_of_file(tmp_path / "a") == blake3(data[:size]).hexdigest()


def test_a_file_that_is_gone_has_none(tmp_path: Path) -> None:
    assert digest_of_file(tmp_path / "a") is None


@pytest.mark.parametrize("said", [None, "blake4"])
def test_a_state_with_other_digests_is_named_for_what_it_is(said: str | None) -> None:
    check_digests("blake3")
    with pytest.raises(Misconfigured, match=said or "sha256"):
        check_digests(said)
