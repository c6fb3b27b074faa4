"""The tensor files: safetensors' own library reads what mergd writes, and writes what mergd reads."""

import os
import time
from collections.abc import Callable, Mapping
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import torch
from blake3 import blake3
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from mergd.state.errors import Busy, Damaged
from mergd.state.headers import BITS, layout_of
from mergd.state.reading import TORCH_DTYPE, ContentDigest, Reader
from mergd.state.records import FileDigest
from mergd.state.writing import Planned, Writer, plan_shards, shard_names

FORMAT_OF = {dtype: name for name, dtype in TORCH_DTYPE.items()}
METADATA = {"format": "pt"}

each_dtype = pytest.mark.parametrize("dtype", sorted(TORCH_DTYPE))


def random(dtype: str, *shape: int, seed: int = 0) -> Tensor:
    """Return a tensor of random bytes: any pattern of bits, NaN among them."""
    length = torch.Size(shape).numel() * BITS[dtype] // 8
    raw = torch.randint(0, 2 if dtype == "BOOL" else 256, (length,), generator=torch.Generator().manual_seed(seed))
    return raw.to(torch.uint8).view(TORCH_DTYPE[dtype]).reshape(shape)


def bits(tensor: Tensor) -> tuple[torch.dtype, tuple[int, ...], bytes]:
    """Return all there is to compare: NaN equals no NaN, but its bytes do."""
    return tensor.dtype, tuple(tensor.shape), bytes(tensor.contiguous().flatten().view(torch.uint8).numpy())


def all_bits(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    return {name: bits(tensor) for name, tensor in tensors.items()}


def planned(tensors: Mapping[str, Tensor]) -> list[Planned]:
    return [Planned(name, FORMAT_OF[tensor.dtype], tuple(tensor.shape)) for name, tensor in tensors.items()]


def written(folder: Path, tensors: Mapping[str, Tensor], rows: int = 1000, **options: Any) -> Writer:
    """Write tensors whole, or by blocks of rows, and return the finished writer."""
    folder.mkdir(exist_ok=True)
    with Writer(folder, "model", planned(tensors), METADATA, **options) as writer:
        for name in writer.order:
            tensor = tensors[name]
            for block in torch.split(tensor, rows) if tensor.ndim else [tensor]:
                writer.write(name, block)
        writer.finish()
    return writer


def loaded(folder: Path) -> dict[str, Tensor]:
    """Return what safetensors' own library reads from a folder."""
    return {name: tensor for path in sorted(folder.iterdir()) for name, tensor in load_file(path).items()}


def mixed() -> dict[str, Tensor]:
    """Return tensors of every dtype, in an order that would misalign some."""
    return {f"weight.{dtype}": random(dtype, 3, 5, seed=i) for i, dtype in enumerate(sorted(TORCH_DTYPE))}


# -------------------------------------------------------------------------------------------------------------- Writer


@each_dtype
def test_what_is_written_is_read_back_to_the_last_bit(tmp_path: Path, dtype: str) -> None:
    tensors = {"scalar": random(dtype), "vector": random(dtype, 7), "batch": random(dtype, 2, 3, 5)}
    written(tmp_path, tensors)
    assert all_bits(loaded(tmp_path)) == all_bits(tensors)


@pytest.mark.parametrize("order", list(permutations(["empty", "nothing", "full"])), ids=str)
@pytest.mark.parametrize("shard_size", [None, 1])
def test_empty_tensors_may_lie_anywhere(tmp_path: Path, order: tuple[str, ...], shard_size: int | None) -> None:
    known = {"empty": torch.zeros(0, 4), "nothing": torch.zeros(3, 0), "full": torch.ones(2, 2)}
    tensors = {name: known[name] for name in order}
    written(tmp_path, tensors, shard_size=shard_size)
    assert all_bits(loaded(tmp_path)) == all_bits(tensors)


def test_no_tensor_at_all_is_a_file_too(tmp_path: Path) -> None:
    written(tmp_path, {})
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
    assert loaded(tmp_path) == {}


def test_dtypes_may_be_mixed_and_each_tensor_is_aligned(tmp_path: Path) -> None:
    writer = written(tmp_path, mixed())
    assert all_bits(loaded(tmp_path)) == all_bits(mixed())
    assert all(info.start * 8 % BITS[info.dtype] == 0 for info in writer.layout.tensors.values())


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_blocks_of_rows_give_the_same_file(tmp_path: Path, rows: int) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir()
    parts.mkdir()
    assert written(whole, mixed()).files == written(parts, mixed(), rows=rows).files
    assert (whole / "model.safetensors").read_bytes() == (parts / "model.safetensors").read_bytes()


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F64"])
def test_a_block_is_cast_to_the_planned_dtype(tmp_path: Path, dtype: str) -> None:
    block = torch.randn(16, 5, generator=torch.Generator().manual_seed(0))
    with Writer(tmp_path, "model", [Planned("a", dtype, (16, 5))], METADATA) as writer:
        writer.write("a", block)
        writer.finish()
    assert bits(loaded(tmp_path)["a"]) == bits(block.to(TORCH_DTYPE[dtype]))


def test_a_block_need_not_be_contiguous(tmp_path: Path) -> None:
    tensors = {"a": random("I64", 16, 5).T}
    written(tmp_path, tensors)
    assert all_bits(loaded(tmp_path)) == all_bits(tensors)


def test_shards_are_named_as_the_ecosystem_names_them(tmp_path: Path) -> None:
    tensors = {f"weight.{i}": random("F32", 5, seed=i) for i in range(5)}  # 20 bytes each
    writer = written(tmp_path, tensors, shard_size=40)
    names = [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    assert sorted(path.name for path in tmp_path.iterdir()) == names == [file.name for file in writer.files]
    assert [sorted(load_file(tmp_path / name)) for name in names] == [
        ["weight.0", "weight.1"],
        ["weight.2", "weight.3"],
        ["weight.4"],
    ]
    assert all_bits(loaded(tmp_path)) == all_bits(tensors)
    assert shard_names("slots", 1) == ["slots.safetensors"]


@pytest.mark.parametrize(
    ("sizes", "shard_size", "shards"),
    [
        pytest.param([4, 4, 4], None, [[4, 4, 4]], id="no bound"),
        pytest.param([4, 4, 4], 8, [[4, 4], [4]], id="full to the last byte"),
        pytest.param([4, 4, 4], 7, [[4], [4], [4]], id="not over the bound"),
        pytest.param([4, 9, 4], 8, [[4], [9], [4]], id="too large for any"),
        pytest.param([], 8, [[]], id="nothing"),
    ],
)
def test_shards_hold_at_most_their_size(sizes: list[int], shard_size: int | None, shards: list[list[int]]) -> None:
    tensors = [Planned(str(i), "U8", (size,)) for i, size in enumerate(sizes)]
    assert [[tensor.nbytes for tensor in shard] for shard in plan_shards(tensors, shard_size)] == shards


@pytest.mark.parametrize("shard_size", [None, 100])
def test_the_layout_is_known_before_the_first_byte(tmp_path: Path, shard_size: int | None) -> None:
    promised = Writer(tmp_path, "model", planned(mixed()), METADATA, shard_size).layout
    writer = written(tmp_path, mixed(), shard_size=shard_size)
    assert promised == writer.layout == layout_of(sorted(tmp_path.iterdir()))


def test_each_digest_is_that_of_its_file(tmp_path: Path) -> None:
    writer = written(tmp_path, mixed(), rows=2, shard_size=100)
    assert len(writer.files) > 1
    for file in writer.files:
        content = (tmp_path / file.name).read_bytes()
        assert (file.size, file.blake3) == (len(content), blake3(content).hexdigest())
    assert writer.nbytes == sum(file.size for file in writer.files)


def test_the_header_says_that_it_is_pytorchs(tmp_path: Path) -> None:
    written(tmp_path, mixed())
    with safe_open(tmp_path / "model.safetensors", framework="pt") as reader:
        assert reader.metadata() == {"format": "pt"}


@pytest.mark.parametrize("mode", [0o600, 0o644])
@pytest.mark.parametrize("umask", [0o000, 0o077])
def test_files_have_their_mode_whatever_the_umask(tmp_path: Path, mode: int, umask: int) -> None:
    before = os.umask(umask)
    try:
        written(tmp_path, mixed(), mode=mode)
    finally:
        os.umask(before)
    assert (tmp_path / "model.safetensors").stat().st_mode & 0o7777 == mode


@pytest.mark.parametrize("shard_size", [None, 30])
def test_tensors_apart_are_in_files_of_their_own_which_may_be_there_already(
    tmp_path: Path, shard_size: int | None
) -> None:
    tensors = {name: torch.full((3, 2), float(k)) for k, name in enumerate("abcd")}
    plan = [Planned(p.name, p.dtype, p.shape, apart=p.name in "ac") for p in planned(tensors)]
    before = written(tmp_path / "before", {name: tensors[name] for name in "ac"}, shard_size=shard_size)
    headers: dict[str, bytes] = {}

    def put(path: Path, header: bytes) -> FileDigest | None:
        file = before.files[len(headers)]
        headers[path.name] = header
        if path.name.startswith("model-00004"):
            return None
        os.link(before.folder / file.name, path)
        return FileDigest(path.name, file.size, file.blake3)

    (tmp_path / "after").mkdir()
    with Writer(tmp_path / "after", "model", plan, METADATA, shard_size) as writer:
        writer.adopt(put)
        assert writer.order == (("b", "d") if shard_size is None else ("b", "d", "c"))
        for name in writer.order:
            writer.write(name, tensors[name])
        layout = writer.finish()
    assert all_bits(loaded(tmp_path / "after")) == all_bits(tensors)
    assert [file.name for file in writer.files] == sorted(path.name for path in (tmp_path / "after").iterdir())
    for file in writer.files:
        content = (tmp_path / "after" / file.name).read_bytes()
        assert (file.size, file.blake3) == (len(content), blake3(content).hexdigest())
    assert writer.apart == list(headers)
    assert {Path(layout.tensors[name].file).name for name in "ac"} == set(headers)
    assert all((tmp_path / "after" / name).read_bytes().startswith(header) for name, header in headers.items())


def test_nothing_is_written_over(tmp_path: Path) -> None:
    written(tmp_path, {"a": torch.ones(2)})
    with pytest.raises(FileExistsError):
        written(tmp_path, {"a": torch.zeros(2)})
    assert torch.equal(loaded(tmp_path)["a"], torch.ones(2))


@pytest.mark.parametrize(
    "blocks",
    [[], [("a", 2)], [("a", 4)], [("a", 4), ("b", 3)], [("a", 4), ("b", 5)]],
    ids=["nothing", "half a tensor", "one of two", "but a row", "a row too many"],
)
@pytest.mark.parametrize("shard_size", [None, 1])
def test_finishing_before_all_is_there_is_damage(
    tmp_path: Path, blocks: list[tuple[str, int]], shard_size: int | None
) -> None:
    plan = [Planned(name, "F32", (4, 3)) for name in "ab"]
    with Writer(tmp_path, "model", plan, METADATA, shard_size) as writer:
        for name, rows in blocks:
            writer.write(name, torch.zeros(rows, 3))
        with pytest.raises(Damaged):
            writer.finish()


def test_what_was_not_finished_looks_like_no_model(tmp_path: Path) -> None:
    with Writer(tmp_path, "model", [Planned("a", "F32", (4, 3))], METADATA) as writer:
        writer.write("a", torch.zeros(2, 3))
    with pytest.raises(SafetensorError):
        load_file(tmp_path / "model.safetensors")
    with pytest.raises(Busy):
        layout_of([tmp_path / "model.safetensors"])


def test_blocks_of_zeros_take_no_disk_where_holes_are_allowed(tmp_path: Path) -> None:
    tensors = {"zeros": torch.zeros(4, 2**18), "ones": torch.ones(2, 2**10), "more": torch.zeros(4, 2**18)}
    whole = written(tmp_path / "whole", tensors, 1)
    sparse = written(tmp_path / "sparse", tensors, 1, holes=True)
    assert sparse.files == whole.files
    assert all_bits(loaded(tmp_path / "sparse")) == all_bits(tensors)
    assert (tmp_path / "sparse" / "model.safetensors").stat().st_blocks * 512 < 2**17
    assert (sparse.nbytes, whole.nbytes) == (sparse.files[0].size - 2**23, whole.files[0].size)


@pytest.mark.parametrize("zero", [torch.tensor([-0.0] * 3), torch.tensor(0.0), torch.zeros(0, 4), torch.zeros(2, 1)])
def test_what_only_looks_like_zeros_is_written(tmp_path: Path, zero: Tensor) -> None:
    written(tmp_path, {"zero": zero}, holes=True)
    assert all_bits(loaded(tmp_path)) == all_bits({"zero": zero})


def test_a_file_that_ends_within_a_hole_is_unfinished(tmp_path: Path) -> None:
    with Writer(tmp_path, "model", [Planned("a", "F32", (4, 3))], METADATA, holes=True) as writer:
        writer.write("a", torch.zeros(2, 3))
        with pytest.raises(Damaged):
            writer.finish()
    with pytest.raises(Busy):
        layout_of([tmp_path / "model.safetensors"])


@pytest.mark.parametrize("shard_size", [None, 1])
@pytest.mark.parametrize("names", ["b", "aba", "ba"])
def test_tensors_out_of_order_are_noticed(tmp_path: Path, names: str, shard_size: int | None) -> None:
    plan = [Planned(name, "F32", (2,)) for name in "abc"]
    with Writer(tmp_path, "model", plan, METADATA, shard_size) as writer, pytest.raises(AssertionError):
        for name in names:
            writer.write(name, torch.zeros(2))


# -------------------------------------------------------------------------------------------------------------- Reader


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return a file with tensors of every dtype, made by safetensors long ago."""
    path = tmp_path / "model.safetensors"
    save_file(mixed() | {"scalar": torch.tensor(0.5), "empty": torch.zeros(0, 4)}, path)
    os.utime(path, ns=(10**18, 10**18))
    return path


def test_what_safetensors_writes_is_read_to_the_last_bit(path: Path) -> None:
    layout = layout_of([path])
    with Reader(layout) as reader:
        found = {name: reader.read(name) for name in layout.tensors}
    assert all_bits(found) == all_bits(load_file(path))
    assert reader.nbytes == layout.nbytes


@each_dtype
@pytest.mark.parametrize("rows", [(0, 3), (0, 1), (1, 3), (2, 2)])
def test_rows_are_read_alone(path: Path, dtype: str, rows: tuple[int, int]) -> None:
    with Reader(layout_of([path])) as reader:
        found = reader.read(f"weight.{dtype}", rows)
    assert bits(found) == bits(mixed()[f"weight.{dtype}"][slice(*rows)])
    assert reader.nbytes == found.numel() * found.element_size()


def test_what_was_read_outlives_the_file(path: Path) -> None:
    with Reader(layout_of([path])) as reader:
        found = reader.read("weight.F32")
    path.write_bytes(b"")
    assert bits(found) == bits(mixed()["weight.F32"])


def test_memory_is_aligned_alike_at_each_read(path: Path) -> None:
    with Reader(layout_of([path])) as reader:
        assert {reader.read("weight.F32", (i % 3, 3)).data_ptr() % 64 for i in range(50)} == {0}


def test_a_file_cut_short_while_open_is_busy_and_nothing_else(path: Path) -> None:
    layout = layout_of([path])
    whole = path.stat().st_size
    for size in range(whole, -1, -1):
        with Reader(layout) as reader:
            os.truncate(path, size)
            for name, info in layout.tensors.items():
                if info.start + info.nbytes <= size or info.nbytes == 0:
                    reader.read(name)
                else:
                    with pytest.raises(Busy):
                        reader.read(name)


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_a_file_that_is_gone_is_busy_and_leaves_none_open(tmp_path: Path) -> None:
    paths = [tmp_path / "one.safetensors", tmp_path / "two.safetensors"]
    for path in paths:
        save_file({path.stem: torch.zeros(2)}, path)
    layout = layout_of(paths)
    paths[1].unlink()
    before = open_files()
    with pytest.raises(Busy), Reader(layout):
        pass
    assert open_files() == before


def overwrite(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\xff")


def overwrite_and_set_the_time_back(path: Path) -> None:
    times = path.stat()
    time.sleep(0.02)  # the clock of file times ticks coarsely
    overwrite(path)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"\xff")


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def replace(path: Path) -> None:
    twin = path.with_suffix(".new")
    twin.write_bytes(path.read_bytes())
    os.utime(twin, ns=(10**18, 10**18))
    twin.replace(path)


@pytest.mark.parametrize(
    "change",
    [overwrite, overwrite_and_set_the_time_back, append, truncate, replace, Path.unlink],
    ids=lambda f: f.__name__,
)
def test_a_change_under_the_reader_is_noticed(path: Path, change: Callable[[Path], None]) -> None:
    with Reader(layout_of([path])) as reader:
        reader.read("weight.F32")
        assert reader.same_as_before()
        change(path)
        assert not reader.same_as_before()


def test_pieces_are_the_bytes_of_any_tensor(path: Path) -> None:
    layout = layout_of([path])
    raw = path.read_bytes()
    with Reader(layout) as reader:
        for name, info in layout.tensors.items():
            pieces = [piece.numpy().tobytes() for piece in reader.pieces(name, 5)]
            assert b"".join(pieces) == raw[info.start : info.start + info.nbytes]
            assert all(len(piece) == 5 for piece in pieces[:-1])


def test_pieces_of_a_file_that_became_shorter_are_none(path: Path) -> None:
    with Reader(layout_of([path])) as reader:
        truncate(path)
        with pytest.raises(Busy, match="became shorter"):
            list(reader.pieces(list(reader.layout.tensors)[-1], 5))


# ------------------------------------------------------------------------------------------------------- ContentDigest


def digest(tensors: Mapping[str, Tensor], folder: Path, rows: int = 1000, **options: Any) -> str:
    """Return the digest of tensors after a trip over the disk, read by blocks of rows."""
    folder.mkdir()
    layout = written(folder, tensors, **options).layout
    content = ContentDigest()
    with Reader(layout) as reader:
        for name, info in layout.tensors.items():
            blocks = (
                [(i, min(i + rows, info.shape[0])) for i in range(0, info.shape[0], rows)] if info.shape else [None]
            )
            for block in blocks or [None]:
                content.add(info, reader.read(name, block))
    return content.hexdigest()


@pytest.mark.parametrize("shard_size", [None, 1, 100])
@pytest.mark.parametrize("rows", [1, 2, 1000])
def test_the_same_content_has_one_digest_however_it_lies(tmp_path: Path, shard_size: int | None, rows: int) -> None:
    backwards = dict(reversed(mixed().items()))
    assert digest(mixed(), tmp_path / "a") == digest(backwards, tmp_path / "b", rows=rows, shard_size=shard_size)


def one_bit_flipped(tensor: Tensor) -> dict[str, Tensor]:
    flipped = tensor.clone()
    flipped.view(torch.uint8)[-1, -1] ^= 1
    return {"a": flipped}


@pytest.mark.parametrize(
    "other",
    [
        one_bit_flipped,
        lambda tensor: {"b": tensor},
        lambda tensor: {"a": tensor.view(torch.bfloat16)},
        lambda tensor: {"a": tensor.reshape(6, 4)},
        lambda tensor: {"a": tensor, "b": torch.zeros(0)},
        lambda tensor: {},
    ],
    ids=["a flipped bit", "another name", "another dtype", "another shape", "one more", "nothing"],
)
def test_other_content_has_another_digest(tmp_path: Path, other: Callable[[Tensor], dict[str, Tensor]]) -> None:
    tensor = random("F16", 4, 6)
    assert digest({"a": tensor}, tmp_path / "a") != digest(other(tensor), tmp_path / "b")


def test_the_bytes_of_one_tensor_have_a_digest_of_their_own(tmp_path: Path) -> None:
    (info,) = written(tmp_path, {"a": torch.ones(2, 3)}).layout.tensors.values()
    content = ContentDigest()
    content.add(info, torch.ones(2, 3))
    assert content.of("a") == blake3(torch.ones(2, 3).numpy().tobytes()).hexdigest()


# -------------------------------------------------------------------------------------------- hashed while it is read


def hashed(folder: Path, reads: Callable[[Reader], object]) -> tuple[list[str], int]:
    """Return what a reader that hashes finds unlike its digest, and how many bytes it read, after these reads."""
    layout = layout_of([folder / "model.safetensors"])
    sums = {path: blake3(Path(path).read_bytes()).hexdigest() for path in layout.files}
    with Reader(layout, hashed=True) as reader:
        reads(reader)
        assert reader.unlike(dict.fromkeys(sums, "0" * 64)) == list(sums)
        return reader.unlike(sums), reader.nbytes


def test_what_is_read_in_file_order_is_hashed_without_a_second_read(tmp_path: Path) -> None:
    writer = written(tmp_path, {"a": random("F32", 50, 4), "b": random("F32", 7), "c": random("F32", 0, 3)})
    size = (tmp_path / "model.safetensors").stat().st_size

    def in_order(reader: Reader) -> None:
        for rows in ((0, 20), (20, 21), (21, 50)):
            reader.read("a", rows)
        for name in writer.order[1:]:
            reader.read(name)

    assert hashed(tmp_path, in_order) == ([], size)


@pytest.mark.parametrize("names", ["", "b", "ba", "bb", "cab", "acab"])
def test_whatever_is_read_the_whole_file_is_hashed(tmp_path: Path, names: str) -> None:
    written(tmp_path, {"a": random("F32", 50, 4), "b": random("F32", 7), "c": random("F32", 9)})
    unlike, nbytes = hashed(tmp_path, lambda reader: [reader.read(name) for name in names])
    assert unlike == []
    assert nbytes < 3 * (tmp_path / "model.safetensors").stat().st_size
