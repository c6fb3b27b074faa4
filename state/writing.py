"""Writing tensors as carriers: a safetensors writer that streams, block by block, and syncs what it wrote."""

import ctypes
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from safetensors import safe_open
from torch import Tensor

from .digests import Digest
from .errors import Damaged
from .headers import BITS
from .reading import TORCH_DTYPE, memory_of
from .records import FileDigest, Layout, TensorInfo
from .store import PRIVATE_FILE

LIBC = ctypes.CDLL(None)
SYNC_FILE_RANGE_WRITE = 2  # fcntl.h
LOOK = 64  # bytes
PUSHED = 8 * 2**20  # bytes that are written before the disk is asked to begin with them


@dataclass(frozen=True)
class Planned:
    """One tensor to be written."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    apart: bool = False  # in files of their own, behind the others

    @property
    def nbytes(self) -> int:
        """Bytes that it will take."""
        return BITS[self.dtype] * math.prod(self.shape) // 8


class Writer:
    """Writes tensors whose names, dtypes and shapes are known beforehand, in `order`, block by block.

    The header is computed first, so that no tensor waits in memory, and each file's digest is made on the way.
    A file that is not closed by `finish` was never complete, and says so: its header promises more bytes.
    """

    def __init__(
        self,
        folder: Path,
        stem: str,
        tensors: Sequence[Planned],
        metadata: Mapping[str, str],
        shard_size: int | None = None,
        mode: int = PRIVATE_FILE,
        holes: bool = False,
    ) -> None:
        self.folder = folder
        self._holes = holes  # blocks of zeros take no disk
        self.nbytes = 0  # written so far
        self.files: list[FileDigest] = []
        self._metadata, self._mode = dict(metadata), mode
        self._shards = plan_shards(tensors, shard_size)
        self._names = shard_names(stem, len(self._shards))
        self._adopted: dict[int, FileDigest] = {}  # by shard
        self._places = self._headers()
        self._fd = -1
        self._shard = -1
        self._offset = self._end = self._pushed = 0
        self._hash = Digest()

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

    @cached_property
    def layout(self) -> Layout:
        """Where each tensor will lie."""
        return Layout(
            {tensor.name: self._places[tensor.name] for shard in self._shards for tensor in shard},
            tuple(str(self.folder / name) for name in self._names),
        )

    @property
    def order(self) -> tuple[str, ...]:
        """The tensors to be written, in the order in which they are."""
        shards = (shard for k, shard in enumerate(self._shards) if k not in self._adopted)
        return tuple(tensor.name for shard in shards for tensor in shard)

    @property
    def apart(self) -> list[str]:
        """The names of the files that hold the tensors which are apart."""
        return [name for name, shard in zip(self._names, self._shards, strict=True) if shard and shard[0].apart]

    def adopt(self, put: Callable[[Path, bytes], FileDigest | None]) -> None:
        """Leave out each file apart that `put` has put at its path already, by its header. Before anything is written."""
        for k, shard in enumerate(self._shards):
            if shard and shard[0].apart:
                file = put(self.folder / self._names[k], self._raw_headers[k])
                self._adopted |= {k: file} if file else {}

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
        data = memory_of(cast)
        beginning = self._holes and not any(data[:LOOK])  # the rest of most blocks need not be looked at
        self._put(data, hole=beginning and not cast.reshape(-1).view(torch.uint8).any())

    def _next_file(self) -> None:
        self._close_file()
        self._shard += 1
        if self._shard in self._adopted:
            self.files.append(self._adopted[self._shard])
            return
        header, shard = self._raw_headers[self._shard], self._shards[self._shard]
        path = self.folder / self._names[self._shard]
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, self._mode)
        os.fchmod(self._fd, self._mode)  # whatever the umask
        self._pushed = 0  # bytes that the disk was asked to begin with
        self._offset, self._end = 0, len(header) + sum(tensor.nbytes for tensor in shard)
        self._hash = Digest()
        self._put(memoryview(header))

    def _put(self, data: memoryview, *, hole: bool = False) -> None:
        self._hash.update(data)
        self._offset += len(data)
        if hole:
            os.lseek(self._fd, len(data), os.SEEK_CUR)
            return
        done = 0
        while done < len(data):
            done += os.write(self._fd, data[done : done + 2**30])
        self.nbytes += done
        if self._offset - self._pushed >= PUSHED:
            push(self._fd, self._pushed, self._offset - self._pushed)
            self._pushed = self._offset

    def _close_file(self) -> None:
        if self._fd < 0:
            return
        if self._offset != self._end:
            raise Damaged(f"{self._names[self._shard]}: {self._offset} of {self._end} bytes were written")
        os.ftruncate(self._fd, self._end)  # it may end with a hole
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


def push(fd: int, offset: int, nbytes: int) -> None:
    """Have the kernel begin to write a part of a file to the disk, so that little is left for the sync, which tells of errors."""
    begin = getattr(LIBC, "sync_file_range", None)  # Linux alone has it
    if begin is not None:
        begin(fd, ctypes.c_int64(offset), ctypes.c_int64(nbytes), SYNC_FILE_RANGE_WRITE)


def plan_shards(tensors: Iterable[Planned], shard_size: int | None) -> list[list[Planned]]:
    """Cut `tensors` into files of at most `shard_size` bytes of weights; a larger tensor has a file of its own.

    Inside a file wider dtypes come first, else the given order stands: then no tensor starts off its alignment. Those
    that are apart come behind the others, in files of their own.
    """
    shards: list[list[Planned]] = [[]]
    size = 0
    for tensor in sorted(tensors, key=lambda tensor: tensor.apart):
        full = shard_size is not None and size + tensor.nbytes > shard_size
        if shards[-1] and (full or tensor.apart != shards[-1][-1].apart):
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += tensor.nbytes
    return [sorted(shard, key=lambda tensor: -BITS[tensor.dtype]) for shard in shards]


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
