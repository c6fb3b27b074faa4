"""The header parser, held against safetensors' own library and against a table of bad files."""

import json
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.torch import save, save_file

from mergd.state.errors import Busy, MergdError, NotPermitted, Refused
from mergd.state.headers import BITS, MAX_HEADER, MAX_NAME, layout_of, read_header
from mergd.state.reading import TORCH_DTYPE
from mergd.state.users import name_of

NOBODY = 65534


def entry(begin: int = 0, end: int = 4, **other: Any) -> dict[str, Any]:
    """Return a header's entry for one float32 number, or what is told instead."""
    return {"dtype": "F32", "shape": [1], "data_offsets": [begin, end], **other}


def raw(header: bytes | dict[str, Any], data: int = 4, length: int | None = None) -> bytes:
    """Return a file of this header and `data` bytes, which may claim another length of its header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + bytes(data)


def text(**changes: str) -> bytes:
    """Return a header that json.dumps would not write: the parts of its one entry, spelled out."""
    parts = {"name": '"a"', "shape": "[1]", "dtype": '"F32"', "offsets": "[0,4]", "more": ""} | changes
    head = f'{{{parts["name"]}:{{"dtype":{parts["dtype"]},"shape":{parts["shape"]},'
    return f'{head}"data_offsets":{parts["offsets"]}}}{parts["more"]}}}'.encode("utf-8", "surrogatepass")


WHOLE = raw({"a": entry()})

BAD: dict[str, bytes] = {
    "a name twice": raw(text(more=',"a":{"dtype":"F32","shape":[0],"data_offsets":[4,4]}')),
    "a field twice": raw(text(dtype='"F32","dtype":"F32"')),
    "a gap": raw({"a": entry(), "b": entry(8, 12)}, 12),
    "a gap at the start": raw({"a": entry(4, 8)}, 8),
    "an overlap": raw({"a": entry(0, 8, shape=[2]), "b": entry(4, 8)}, 8),
    "the same bytes twice": raw({"a": entry(), "b": entry()}),
    "begin after end": raw({"a": entry(4, 0)}),
    "a negative offset": raw({"a": entry(-4, 0)}),
    "a negative length": raw({"a": entry(shape=[-1])}),
    "two negative lengths": raw({"a": entry(shape=[-1, -1])}),
    "a float in the shape": raw({"a": entry(shape=[1.0])}),
    "a bool in the shape": raw({"a": entry(shape=[True])}),
    "a shape that is no list": raw({"a": entry(shape=1)}),
    "a shape that is text": raw({"a": entry(shape="")}),
    "a shape that is an object": raw({"a": entry(shape={})}),
    "a shape beyond 64 bits": raw({"a": entry(0, 0, shape=[0, 2**64])}, 0),
    "a shape whose product overflows": raw({"a": entry(0, 0, shape=[2**40, 2**40, 0])}, 0),
    "a number of 5000 digits": raw(text(shape=f"[{'9' * 5000}]")),
    "a shape that does not fit its bytes": raw({"a": entry(shape=[2])}),
    "three offsets": raw({"a": entry(data_offsets=[0, 4, 4])}),
    "no offsets": raw({"a": {"dtype": "F32", "shape": [1]}}),
    "an entry that is a number": raw({"a": 1}),
    "an unknown dtype": raw({"a": entry(dtype="F31")}),
    "a dtype that is no text": raw({"a": entry(dtype=["F32"])}),
    "not starting with {": raw(b" " + text()),
    "a list": raw(b"[]", 0),
    "no JSON": raw(b"{" * 20, 0),
    "JSON and more": raw(text() + b"{}"),
    "NaN": raw(text(shape="[NaN]")),
    "NaN where nobody looks": raw(text(more=',"__metadata__":{"a":NaN}')),
    "Infinity": raw(text(offsets="[0,Infinity]")),
    "not UTF-8": raw(text().replace(b'"a"', b'"\xff"')),
    "half a surrogate pair": raw(text(name='"\\ud800"')),
    "deep nesting": raw(text(shape="[" * 100_000 + "]" * 100_000)),
    "a name that is too long": raw({"a" * (MAX_NAME + 1): entry()}),
    "a name too long in bytes": raw({"ä" * (MAX_NAME // 2 + 1): entry()}),
    "an empty header": raw(b"", 0),
    "a header of 2^63 bytes": raw(text(), length=2**63),
    "a header over the bound": raw(text(), length=MAX_HEADER + 1),
    "bytes after the last tensor": raw({"a": entry()}, 5),
    "bytes and no tensor": raw({}, 1),
}

INCOMPLETE: dict[str, bytes] = {
    "nothing yet": b"",
    "half a length": WHOLE[:4],
    "a length alone": WHOLE[:8],
    "half a header": WHOLE[:30],
    "a header alone": WHOLE[:-4],
    "the last byte missing": WHOLE[:-1],
    "a git-lfs pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 4\n",
}

# Where mergd refuses more than the library does: bounds of its own, and one rule of the format that it does not enforce.
STRICTER = {
    "a name that is too long",
    "a name too long in bytes",
    "a header over the bound",
    "not starting with {",
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


@pytest.mark.parametrize("case", BAD)
def test_a_header_that_no_waiting_mends_is_refused(path: Path, case: str) -> None:
    path.write_bytes(BAD[case])
    with pytest.raises(Refused) as caught:
        read_header(path)
    (reason,) = caught.value.reasons
    assert reason.code == "unreadable"
    assert path.name in reason.found
    assert caught.value.hint


@pytest.mark.parametrize("case", sorted(BAD.keys() - STRICTER))
def test_safetensors_refuses_the_same_headers(path: Path, case: str) -> None:
    path.write_bytes(BAD[case])
    with pytest.raises(SafetensorError):
        safe_open(path, framework="pt")


@pytest.mark.parametrize("case", INCOMPLETE)
def test_a_file_that_may_still_grow_is_busy(path: Path, case: str) -> None:
    path.write_bytes(INCOMPLETE[case])
    with pytest.raises(Busy):
        read_header(path)


def test_every_beginning_of_a_whole_file_is_busy(path: Path) -> None:
    for length in range(len(WHOLE)):
        path.write_bytes(WHOLE[:length])
        with pytest.raises(Busy):
            read_header(path)
    path.write_bytes(WHOLE)
    assert list(read_header(path)) == ["a"]


def test_a_git_lfs_pointer_says_what_to_do(path: Path) -> None:
    path.write_bytes(INCOMPLETE["a git-lfs pointer"])
    with pytest.raises(Busy) as caught:
        read_header(path)
    assert "git lfs pull" in caught.value.hint


@pytest.mark.parametrize("name", ["a" * MAX_NAME, "ä" * (MAX_NAME // 2), "", "model.layers.0.weight"])
def test_names_up_to_the_bound_are_read(path: Path, name: str) -> None:
    path.write_bytes(raw({name: entry()}))
    assert list(read_header(path)) == [name]


def test_metadata_and_padding_are_no_tensors(path: Path) -> None:
    path.write_bytes(raw(json.dumps({"__metadata__": {"format": "pt"}, "a": entry()}).encode() + b" " * 7))
    assert list(read_header(path)) == ["a"]


# ------------------------------------------------------------------------------------------ what is no readable file


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, make_socket], ids=["pipe", "folder", "socket"])
def test_what_is_no_file_is_refused_without_blocking(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], None]
) -> None:
    monkeypatch.chdir(tmp_path)  # a socket's path must be short
    make(Path("m.safetensors"))
    before = open_files()
    with pytest.raises(Refused) as caught:
        read_header("m.safetensors")
    assert open_files() == before
    assert caught.value.reasons[0].code == "not-a-file"


def test_a_file_that_is_gone_is_busy(path: Path) -> None:
    with pytest.raises(Busy):
        read_header(path)


@pytest.fixture
def as_nobody() -> Iterator[None]:
    """Give root's right to read everything away for a while."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    yield
    os.seteuid(0)


@pytest.fixture
def locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return a file that nobody but root may read, in a folder `inner` that can still be locked, too."""
    tmp_path.chmod(0o755)
    monkeypatch.chdir(tmp_path)  # no parent folder needs to let us in
    inner = Path("inner")
    inner.mkdir(mode=0o755)
    (inner / "m.safetensors").write_bytes(WHOLE)
    (inner / "m.safetensors").chmod(0)
    yield inner / "m.safetensors"
    tmp_path.joinpath(inner).chmod(0o755)


def test_a_file_that_we_may_not_read_tells_mode_and_owner(locked: Path, as_nobody: None) -> None:
    with pytest.raises(NotPermitted, match=f"mode 0000, owner {name_of(os.getuid())}"):
        read_header(locked)


def test_a_folder_that_we_may_not_enter_is_told(locked: Path, request: pytest.FixtureRequest) -> None:
    locked.parent.chmod(0)
    request.getfixturevalue("as_nobody")
    with pytest.raises(NotPermitted, match="in a folder that we cannot enter"):
        read_header(locked)


def test_no_file_stays_open(path: Path) -> None:
    before = open_files()
    for content in (WHOLE, *BAD.values(), *INCOMPLETE.values()):
        path.write_bytes(content)
        try:
            read_header(path)
        except MergdError:
            pass
    assert open_files() == before


# ------------------------------------------------------------------------------------------ safetensors' own library

dtypes = st.sampled_from(sorted(TORCH_DTYPE))
shapes = st.lists(st.integers(0, 4), max_size=3).map(tuple)
plans = st.dictionaries(st.text(max_size=20).filter(lambda name: name != "__metadata__"), st.tuples(dtypes, shapes))


@settings(deadline=None, max_examples=60)
@given(plan=plans)
def test_what_safetensors_writes_is_read_as_it_was_meant(
    tmp_path_factory: pytest.TempPathFactory, plan: dict[str, tuple[str, tuple[int, ...]]]
) -> None:
    tensors = {
        name: torch.full(shape, i).to(TORCH_DTYPE[dtype]) for i, (name, (dtype, shape)) in enumerate(plan.items())
    }
    path = tmp_path_factory.getbasetemp() / "roundtrip.safetensors"
    content = save(tensors)
    path.write_bytes(content)
    found = read_header(path)
    assert {name: (info.dtype, info.shape) for name, info in found.items()} == plan
    for name, info in found.items():
        assert (info.name, info.file) == (name, str(path))
        assert (
            content[info.start : info.start + info.nbytes]
            == tensors[name].flatten().view(torch.uint8).numpy().tobytes()
        )


def test_every_dtype_that_is_read_has_its_own_size() -> None:
    assert {name: 8 * dtype.itemsize for name, dtype in TORCH_DTYPE.items()}.items() <= BITS.items()


@settings(deadline=None, max_examples=150)
@given(data=st.data())
def test_what_one_changed_byte_lets_pass_safetensors_lets_pass_too(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.getbasetemp() / "changed.safetensors"
    content = bytearray(raw({"a": entry(), "b": entry(4, 12, shape=[2, 1])}, 12))
    content[data.draw(st.integers(0, len(content) - 13))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
        found = read_header(path)
    except (Busy, Refused):
        return
    with safe_open(path, framework="pt") as reader:
        assert set(reader.keys()) == set(found)


def test_a_layout_names_the_file_of_each_tensor(tmp_path: Path) -> None:
    paths = [tmp_path / "one.safetensors", tmp_path / "two.safetensors"]
    for path, name in zip(paths, "ab", strict=True):
        save_file({name: torch.zeros(2, 3)}, path)
    layout = layout_of(paths)
    assert layout.files == tuple(map(str, paths))
    assert {name: info.file for name, info in layout.tensors.items()} == dict(zip("ab", layout.files, strict=True))
    assert layout.nbytes == 48
