"""Tensor files as carriers: pread into memory that we own, and a safetensors writer that streams.

Nothing is mapped: a mapped file that somebody truncates kills the process. torch allocates the memory, so that it is
aligned alike at each run, which a matrix product needs to give the same bytes again.
"""

import ctypes
import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from safetensors import safe_open
from torch import Tensor

from .errors import Busy, Damaged
from .headers import ITEMSIZE, open_regular
from .records import FileDigest, Layout, TensorInfo

TORCH_DTYPE = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "I16": torch.int16, "U16": torch.uint16,
    "F16": torch.float16, "BF16": torch.bfloat16, "I32": torch.int32, "U32": torch.uint32, "F32": torch.float32,
    "F64": torch.float64, "I64": torch.int64, "U64": torch.uint64,
    "F8_E5M2": torch.float8_e5m2, "F8_E4M3": torch.float8_e4m3fn,
}  # fmt: skip


def memory_of(tensor: Tensor) -> memoryview:
    """Return a contiguous tensor's own memory as writable bytes; valid only while the tensor lives."""
    nbytes = tensor.numel() * tensor.element_size()
    return memoryview((ctypes.c_char * nbytes).from_address(tensor.data_ptr())).cast("B")


class Reader:
    """The tensors of one model on disk, read whole or by blocks of rows (of the first dimension)."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.nbytes = 0  # read so far
        self._files: dict[str, int] = {}
        self._before: dict[str, os.stat_result] = {}

    def __enter__(self) -> Self:
        try:
            for path in self.layout.files:
                self._files[path] = open_regular(path)
                self._before[path] = os.fstat(self._files[path])
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the files; the tensors already read stay valid."""
        for fd in self._files.values():
            os.close(fd)
        self._files.clear()

    def read(self, name: str, rows: tuple[int, int] | None = None) -> Tensor:
        """Return tensor `name`, or its rows `rows[0]` to `rows[1]` (exclusive), in the dtype it is stored in.

        Raises Busy if the file ends before the tensor does: somebody truncated it.
        """
        info = self.layout.tensors[name]
        first, last = rows if rows is not None else (0, info.shape[0] if info.shape else 1)
        row_bytes = info.nbytes // info.shape[0] if info.shape and info.shape[0] else info.nbytes
        tensor = torch.empty(_shape(info, last - first), dtype=TORCH_DTYPE[info.dtype])
        self._fill(tensor, info, info.start + first * row_bytes)
        return tensor

    def _fill(self, tensor: Tensor, info: TensorInfo, offset: int) -> None:
        view = memory_of(tensor)
        done = 0
        while done < len(view):
            got = os.preadv(self._files[info.file], [view[done : done + 2**30]], offset + done)
            if got == 0:
                raise Busy(f"{info.file} became shorter while it was read")
            done += got
        self.nbytes += done

    def same_as_before(self) -> bool:
        """Whether no file was changed or replaced since it was opened."""
        try:
            now = {path: os.stat(path) for path in self._files}
        except OSError:
            return False
        return all(_identity(now[path]) == _identity(self._before[path]) for path in self._files)


def _shape(info: TensorInfo, rows: int) -> tuple[int, ...]:
    return (rows, *info.shape[1:]) if info.shape else ()


def _identity(status: os.stat_result) -> tuple[int, ...]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


@dataclass(frozen=True)
class Planned:
    """One tensor to be written."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes that it will take."""
        return ITEMSIZE[self.dtype] * math.prod(self.shape)


class Writer:
    """Writes tensors whose names, dtypes and shapes are known beforehand, in `order`, block by block.

    The header is computed first, so that no tensor waits in memory, and each file's sha256 is made on the way.
    A file that is not closed by `finish` was never complete, and says so: its header promises more bytes.
    """

    def __init__(
        self,
        folder: Path,
        stem: str,
        tensors: Sequence[Planned],
        metadata: Mapping[str, str],
        shard_size: int | None = None,
        mode: int = 0o600,
    ) -> None:
        self.folder = folder
        self.nbytes = 0  # written so far
        self.files: list[FileDigest] = []
        self._metadata, self._mode = dict(metadata), mode
        self._shards = plan_shards(tensors, shard_size)
        self._names = shard_names(stem, len(self._shards))
        self.order = tuple(tensor.name for shard in self._shards for tensor in shard)
        self._places = self._headers()
        self._fd = -1
        self._shard = -1
        self._offset = self._end = 0
        self._hash = hashlib.sha256()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _headers(self) -> dict[str, TensorInfo]:
        places: dict[str, TensorInfo] = {}
        self._raw_headers = []
        for shard, name in zip(self._shards, self._names, strict=True):
            header, starts = _header(shard, self._metadata)
            self._raw_headers.append(header)
            for tensor, start in zip(shard, starts, strict=True):
                places[tensor.name] = TensorInfo(
                    tensor.name, tensor.dtype, tensor.shape, str(self.folder / name), start, tensor.nbytes
                )
        return places

    @property
    def layout(self) -> Layout:
        """Where each tensor will lie."""
        return Layout(
            {name: self._places[name] for name in self.order}, tuple(str(self.folder / n) for n in self._names)
        )

    def dtype_of(self, name: str) -> torch.dtype:
        """Return the dtype that a tensor is written in."""
        return TORCH_DTYPE[self._places[name].dtype]

    def write(self, name: str, block: Tensor) -> None:
        """Append the next block of rows of tensor `name`, cast to the planned dtype. Blocks come in `order`."""
        info = self._places[name]
        while self._shard < 0 or info.file != str(self.folder / self._names[self._shard]):
            assert self._offset == self._end, f"{name} out of order"
            self._next_file()
        assert info.start <= self._offset <= info.start + info.nbytes, f"{name} out of order"
        cast = block.to(self.dtype_of(name)).contiguous()  # named, because its memory is read below
        self._put(memory_of(cast))

    def _next_file(self) -> None:
        self._close_file()
        self._shard += 1
        header, shard = self._raw_headers[self._shard], self._shards[self._shard]
        path = self.folder / self._names[self._shard]
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, self._mode)
        os.fchmod(self._fd, self._mode)  # whatever the umask
        self._offset, self._end = 0, len(header) + sum(tensor.nbytes for tensor in shard)
        self._hash = hashlib.sha256()
        self._put(memoryview(header))

    def _put(self, data: memoryview) -> None:
        self._hash.update(data)
        done = 0
        while done < len(data):
            done += os.write(self._fd, data[done : done + 2**30])
        self._offset += done
        self.nbytes += done

    def _close_file(self) -> None:
        if self._fd < 0:
            return
        if self._offset != self._end:
            raise Damaged(f"{self._names[self._shard]}: {self._offset} of {self._end} bytes were written")
        os.fsync(self._fd)  # an error here ends the attempt: after it, the kernel may have dropped the pages
        os.close(self._fd)
        self._fd = -1
        self.files.append(FileDigest(self._names[self._shard], self._end, self._hash.hexdigest()))

    def finish(self) -> Layout:
        """Sync and close the last file, and return the layout of all, once safetensors' own reader agrees with it."""
        while self._shard < len(self._shards) - 1:  # files whose tensors are all empty got no block
            self._next_file()
        self._close_file()
        for name, shard in zip(self._names, self._shards, strict=True):
            with safe_open(self.folder / name, framework="pt") as opened:
                if set(opened.keys()) != {tensor.name for tensor in shard}:
                    raise Damaged(f"{name} does not read back as it was written")
        return self.layout


def plan_shards(tensors: Iterable[Planned], shard_size: int | None) -> list[list[Planned]]:
    """Cut `tensors` into files of at most `shard_size` bytes of weights; a larger tensor has a file of its own.

    Inside a file wider dtypes come first, else the given order stands: then no tensor starts off its alignment.
    """
    shards: list[list[Planned]] = [[]]
    size = 0
    for tensor in tensors:
        if shard_size is not None and shards[-1] and size + tensor.nbytes > shard_size:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += tensor.nbytes
    return [sorted(shard, key=lambda tensor: -ITEMSIZE[tensor.dtype]) for shard in shards]


def shard_names(stem: str, count: int) -> list[str]:
    """Return the file names of `count` shards, as the ecosystem writes them."""
    if count == 1:
        return [f"{stem}.safetensors"]
    return [f"{stem}-{k:05d}-of-{count:05d}.safetensors" for k in range(1, count + 1)]


def _header(tensors: Sequence[Planned], metadata: Mapping[str, str]) -> tuple[bytes, list[int]]:
    entries: dict[str, object] = {"__metadata__": dict(metadata)}
    starts = []
    offset = 0
    for tensor in tensors:
        entries[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + tensor.nbytes],
        }
        starts.append(offset)
        offset += tensor.nbytes
    raw = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    raw += b" " * (-len(raw) % 8)
    return len(raw).to_bytes(8, "little") + raw, [8 + len(raw) + start for start in starts]


class ContentDigest:
    """The digest of a checkpoint's content, gathered while it is read: over sorted (name, dtype, shape, sha256).

    Another sharding of the same weights, another order or other metadata have the same digest.
    """

    def __init__(self) -> None:
        self._weights: dict[str, tuple[TensorInfo, hashlib._Hash]] = {}

    def add(self, info: TensorInfo, block: Tensor) -> None:
        """Add the next block of rows of one tensor, in the dtype it is stored in."""
        _, running = self._weights.setdefault(info.name, (info, hashlib.sha256()))
        if block.numel():
            running.update(memory_of(block))

    def of(self, name: str) -> str:
        """Return the sha256 of one tensor's bytes."""
        return self._weights[name][1].hexdigest()

    def hexdigest(self) -> str:
        """Return the digest of all that was added."""
        whole = hashlib.sha256()
        for name, (info, _) in sorted(self._weights.items()):
            whole.update(json.dumps([name, info.dtype, list(info.shape), self.of(name)]).encode() + b"\n")
        return whole.hexdigest()
