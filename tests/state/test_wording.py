"""How messages word what came from outside: nothing that a log or a terminal obeys, nothing long, sizes for people."""

import json
from pathlib import Path

import pytest

from mergd.state.errors import Busy, MergdError
from mergd.state.headers import BITS, read_header
from mergd.state.wording import LONG, shown, size


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("layer.0.weight", "layer.0.weight"),
        ("größe 😀", "größe 😀"),
        ("a\x1b[31m\n\0", "a\\x1b[31m\\n\\x00"),
        ("\u202egnp.exe", "\\u202egnp.exe"),  # would be shown backwards
        ("\ud800", "\\ud800"),
        (["F32"], "['F32']"),
        ("a" * LONG, "a" * LONG),
        ("a" * (LONG + 1), "a" * LONG + "…"),
    ],
)
def test_foreign_text_is_escaped_and_cut(text: object, expected: str) -> None:
    assert shown(text) == expected
    assert shown(text).isprintable()
    shown(text).encode()


@pytest.mark.parametrize(
    ("nbytes", "expected"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (1.25e9, "1.2 GB"), (3e12, "3.0 TB"), (4e16, "40000.0 TB")],
)
def test_sizes_are_said_as_people_read_them(nbytes: float, expected: str) -> None:
    assert size(nbytes) == expected


def header(name: str, dtype: str, shape: list[int], nbytes: int) -> bytes:
    text = json.dumps({name: {"dtype": dtype, "shape": shape, "data_offsets": [0, nbytes]}}).encode()
    return len(text).to_bytes(8, "little") + text


def test_an_incomplete_file_says_how_much_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(header("a", "F32", [300_000_000], 1_200_000_000))
    with pytest.raises(Busy, match=r"^model\.safetensors, which is missing 1\.2 GB$"):
        read_header(path)
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(Busy, match=r"^model\.safetensors, which is missing \d+ B of its header$"):
        read_header(path)


@pytest.mark.parametrize("content", [b"", b"version https://git-lfs", b"\xff" * 9, header("a", "F33", [], 4)])
def test_a_files_name_can_do_nothing_to_a_log(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a\x1b[31m\nb.safetensors"
    path.write_bytes(content)
    with pytest.raises(MergdError) as caught:
        read_header(path)
    assert "a\\x1b[31m\\nb.safetensors" in str(caught.value)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("dtype", BITS)
def test_every_dtype_of_the_format_is_known_with_its_bits(tmp_path: Path, dtype: str) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(header("a", dtype, [2, 4], BITS[dtype]) + bytes(BITS[dtype]))
    (info,) = read_header(path).values()
    assert (info.dtype, info.shape, info.nbytes) == (dtype, (2, 4), BITS[dtype])
