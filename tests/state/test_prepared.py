"""What was prepared comes back as it was, bit by bit and stride by stride, or not at all: whatever became of the files."""

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mergd.state import prepared
from mergd.state.prepared import Place, Preparation, Prepared, Rows, forget, place_of
from mergd.state.records import Weight

W, BATCH, KEY = Weight("w", (6, 4), "matrix"), Weight("batch", (4, 3, 2), "matrix"), "key"
PLACES: list[tuple[Weight, str, Rows]] = [(W, "One()", None), (W, "Two()", None), (BATCH, "One()", (0, 2)),
                                          (BATCH, "One()", (2, 4))]  # fmt: skip


def tensors(seed: int) -> dict[str, Tensor]:
    """Return what a statistic may prepare: in rows, in columns, of nothing, and a number."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "rows": torch.randn(6, 2, generator=generator),
        "columns": torch.randn(3, 5, generator=generator, dtype=torch.float64).T,
        "none": torch.zeros(6, 0),
        "r": torch.tensor(seed),
    }


def same(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> bool:
    """Whether two have the same names, dtypes, strides and bits."""
    return found.keys() == expected.keys() and all(
        torch.equal(found[name], tensor)
        and (found[name].dtype, found[name].stride()) == (tensor.dtype, tensor.stride())
        for name, tensor in expected.items()
    )


def prepare(folder: Path, key: str = KEY, wanted: Callable[[Place], bool] = lambda place: True) -> int:
    """Write what is lacking; returns how many that were."""
    written = 0
    with Preparation(folder, key, wanted) as into:
        for seed, at in enumerate(PLACES):
            if place_of(*at) not in into.places:
                into.add(place_of(*at), tensors(seed))
                written += 1
    return written


def found_in(folder: Path, key: str = KEY) -> int:
    """Return how many are prepared; none of them otherwise than it was written."""
    reader, count = Prepared(folder, key), 0
    for seed, at in enumerate(PLACES):
        if found := reader.of(*at):
            assert same(found, tensors(seed))
            count += 1
    return count


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "prepared" / "000001"


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepared, "CHUNK", 300)


def test_what_was_prepared_comes_back_with_the_same_bits_and_strides(folder: Path) -> None:
    prepare(folder)
    assert found_in(folder) == len(PLACES)
    assert [path.name for path in folder.iterdir()] == ["000001"]
    reader = Prepared(folder, KEY)
    reader.of(*PLACES[0])
    assert reader.nbytes == sum(tensor.nbytes for tensor in tensors(0).values())


def test_nothing_is_prepared_of_what_differs_in_anything(folder: Path) -> None:
    prepare(folder)
    reader = Prepared(folder, KEY)
    others = [(Weight("v", W.shape, "matrix"), "One()", None), (Weight("w", (4, 6), "matrix"), "One()", None),
              (W, "Three()", None), (W, "One()", (0, 2)), (BATCH, "One()", None)]  # fmt: skip
    assert not any(reader.of(*other) for other in others)
    assert found_in(folder, "another key") == 0
    assert not Prepared().of(*PLACES[0])


def test_what_has_gaps_is_not_kept_and_not_asked_for_again(folder: Path) -> None:
    place = place_of(*PLACES[0])
    with Preparation(folder, KEY, lambda place: True) as into:
        into.add(place, {"gaps": torch.randn(4, 4)[:, :2]})
    assert not Prepared(folder, KEY).of(*PLACES[0])
    with Preparation(folder, KEY, lambda place: True) as into:
        assert place in into.places


def test_what_is_there_is_not_written_again(folder: Path, small_chunks: None) -> None:
    assert prepare(folder) == len(PLACES)
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert len(before) == 2
    assert prepare(folder) == 0
    (folder / "000001").unlink()
    assert prepare(folder) == 2
    assert {path.name for path in folder.iterdir()} == {"000002", "000003"}
    assert found_in(folder) == len(PLACES)


def test_what_is_wanted_no_more_goes(folder: Path, small_chunks: None) -> None:
    prepare(folder)
    (folder / ".aside").write_bytes(b"left by a crash")
    with Preparation(folder, KEY, lambda place: place[0] == "w") as into:
        assert {place[0] for place in into.places} == {"w"}
    assert [path.name for path in folder.iterdir()] == ["000001"]
    with Preparation(folder, "another key", lambda place: True) as into:
        assert (into.places, into.nbytes) == (set(), 0)
    assert not list(folder.iterdir())


def test_of_a_file_with_any_flipped_bit_nothing_is_wrong(folder: Path) -> None:
    prepare(folder)
    path = folder / "000001"
    whole, counts = path.read_bytes(), set()
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ (1 << at % 8)]) + whole[at + 1 :])
        counts.add(found_in(folder))
    assert counts == {0, len(PLACES) - 1}  # a tensor's bits spoil one place, the index's all


def test_of_a_file_that_is_cut_anywhere_nothing_is_there(folder: Path) -> None:
    prepare(folder)
    path = folder / "000001"
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        assert found_in(folder) == 0


@pytest.mark.parametrize("garbage", [b"", b"\0" * 4096, b"\xff" * 4096, b"{}"])
def test_garbage_is_nothing_and_goes(folder: Path, garbage: bytes) -> None:
    folder.mkdir(parents=True)
    (folder / "000001").write_bytes(garbage)
    assert found_in(folder) == 0
    assert prepare(folder) == len(PLACES)
    assert found_in(folder) == len(PLACES)


def test_what_goes_while_it_is_read_is_nothing(folder: Path) -> None:
    prepare(folder)
    reader = Prepared(folder, KEY)
    assert reader.of(*PLACES[0])
    assert forget(folder.parent)
    assert not reader.of(*PLACES[0])
    assert not forget(folder.parent)


def test_all_but_one_are_forgotten(folder: Path) -> None:
    other = folder.with_name("000002")
    prepare(folder)
    prepare(other)
    assert forget(folder.parent, but=other)
    assert list(folder.parent.iterdir()) == [other]
    assert not forget(folder.parent, but=other)


def test_wherever_it_is_killed_what_is_there_is_right_and_the_rest_is_done(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_chunks: None
) -> None:
    left: list[Path] = []  # what a kill before each call leaves, and one in the middle of each write

    def snapshot() -> None:
        left.append(shutil.copytree(folder, tmp_path / f"left-{len(left)}" / "000001"))

    def watched(real: Callable[..., Any], *, torn: bool = False) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            snapshot()
            if torn:
                fd, data = arguments
                half = real(fd, data[: len(data) // 2])
                snapshot()
                return half + real(fd, data[half:])
            return real(*arguments)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", watched(os.write, torn=True))
        patch.setattr(Path, "rename", watched(Path.rename))
        prepare(folder)
    assert len(left) == 30
    lacking = []
    for place in left:
        there = found_in(place)
        lacking.append(prepare(place))
        assert there + lacking[-1] == len(PLACES)
        assert found_in(place) == len(PLACES)
    assert set(lacking) == {4, 2}  # chunks of two
