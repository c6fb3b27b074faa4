"""Reading tensors as carriers: pread into memory that we own, whole or by blocks of rows, and the digest of what was read.

Nothing is mapped: a mapped file that somebody truncates kills the process. torch allocates the memory, so that it is
aligned alike at each run, which a matrix product needs to give the same bytes again.
"""

import ctypes
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from .digests import Digest
from .errors import Busy
from .feeding import Feed
from .headers import open_regular, reading
from .records import FileStamp, Layout, TensorInfo
from .wording import shown

TORCH_DTYPE = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "I16": torch.int16, "U16": torch.uint16,
    "F16": torch.float16, "BF16": torch.bfloat16, "I32": torch.int32, "U32": torch.uint32, "F32": torch.float32,
    "F64": torch.float64, "I64": torch.int64, "U64": torch.uint64,
    "F8_E5M2": torch.float8_e5m2, "F8_E4M3": torch.float8_e4m3fn,
}  # fmt: skip

PIECE = 4 * 2**20  # bytes read at once where no tensor is wanted
PART = 2**19  # bytes of a few rows


def memory_of(tensor: Tensor) -> memoryview:
    """Return a contiguous tensor's own memory as writable bytes; valid only while the tensor lives."""
    nbytes = tensor.numel() * tensor.element_size()
    return memoryview((ctypes.c_char * nbytes).from_address(tensor.data_ptr())).cast("B")


class Reader:
    """The tensors of one model on disk, read whole or by blocks of rows (of the first dimension)."""

    def __init__(self, layout: Layout, hashed: bool = False, feed: Feed | None = None) -> None:
        """`hashed`: whether the files are hashed as they are read; `feed`: what gives their bytes, if not the disk."""
        self.layout = layout
        self._fed = feed.open() if feed is not None else None
        self.nbytes = 0  # read so far
        self._sums = {path: _Sum() for path in layout.files} if hashed else {}
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

        Raises Busy if the file ends before the tensor does: somebody truncated it; Unavailable if the disk, or what feeds
        it, cannot give it.
        """
        info = self.layout.tensors[name]
        first, last = rows if rows is not None else (0, info.shape[0] if info.shape else 1)
        row_bytes = info.nbytes // info.shape[0] if info.shape and info.shape[0] else info.nbytes
        tensor = torch.empty(_shape(info, last - first), dtype=TORCH_DTYPE[info.dtype])
        self._fill(tensor, info, info.start + first * row_bytes)
        return tensor

    def dtype_of(self, name: str) -> torch.dtype:
        """Return the dtype that a tensor is stored in."""
        return TORCH_DTYPE[self.layout.tensors[name].dtype]

    def parts(self, name: str, rows: tuple[int, int] | None) -> Iterator[tuple[tuple[int, int] | None, Tensor]]:
        """Yield a tensor, or its rows `rows[0]` to `rows[1]` (exclusive), a few rows at a time: they fit the cache."""
        if rows is None:
            yield None, self.read(name)
            return
        step = max(1, PART * self.layout.tensors[name].shape[0] // max(1, self.layout.tensors[name].nbytes))
        for first in range(rows[0], rows[1], step):
            some = first, min(first + step, rows[1])
            yield some, self.read(name, some)

    def pieces(self, name: str, nbytes: int, first: int = 0) -> Iterator[Tensor]:
        """Yield tensor `name` from byte `first` on, at most so many bytes at a time, whatever its dtype and shape.

        Raises Busy if the file ends before the tensor does: somebody truncated it; Unavailable if the disk cannot read it.
        """
        info = self.layout.tensors[name]
        for start in range(first, info.nbytes, nbytes):
            piece = torch.empty(min(nbytes, info.nbytes - start), dtype=torch.uint8)
            self._fill(piece, info, info.start + start)
            yield piece

    def _fill(self, tensor: Tensor, info: TensorInfo, offset: int) -> None:
        view = memory_of(tensor)
        done = 0
        if self._fed is not None:
            self._fed(view, info.file, offset)
            done = len(view)
        while done < len(view):
            with reading(info.file):
                got = os.preadv(self._files[info.file], [view[done : done + 2**30]], offset + done)
            if got == 0:
                raise Busy(f"{shown(Path(info.file).name)} became shorter while it was read")
            done += got
        self.nbytes += done
        if info.file in self._sums:
            self._catch_up(info.file, offset)
            self._sums[info.file].add(view, offset)

    def unlike(self, sums: Mapping[str, str]) -> list[str]:
        """Return which of the files, read by a reader that hashes, have another digest than these.

        What was read in file order was hashed as it was read; only the rest, such as the headers, is read for it.
        """
        for path in self._sums:
            self._catch_up(path, self._before[path].st_size)
        return [path for path, so_far in self._sums.items() if so_far.running.hexdigest() != sums[path]]

    def _catch_up(self, path: str, offset: int) -> None:
        """Hash what was passed over before an offset."""
        so_far = self._sums[path]
        while so_far.done < offset and (
            more := os.pread(self._files[path], min(PIECE, offset - so_far.done), so_far.done)
        ):
            so_far.add(memoryview(more), so_far.done)
            self.nbytes += len(more)

    def opened_as(self, stamps: Iterable[FileStamp]) -> bool:
        """Whether each file was, when it was opened, one that was sighted.

        Who overwrites a file between two looks at it leaves a mixture that the times at the opening tell nothing of.
        """
        sighted = {(s.device, s.inode, s.size, s.mtime_ns, s.ctime_ns) for s in stamps}
        return {_identity(status) for status in self._before.values()} <= sighted

    def same_as_before(self) -> bool:
        """Whether no file was changed or replaced since it was opened."""
        try:
            now = {path: os.stat(path) for path in self._files}
        except OSError:
            return False
        return all(_identity(now[path]) == _identity(self._before[path]) for path in self._files)


class _Sum:
    """The digest of a file's beginning."""

    def __init__(self) -> None:
        self.done = 0  # bytes
        self.running = Digest()

    def add(self, data: memoryview, offset: int) -> None:
        """Add what was read at an offset, as far as it goes on from here; what was hashed already is passed over."""
        fresh = data[self.done - offset :] if offset <= self.done else data[:0]
        self.running.update(fresh)
        self.done += len(fresh)


def _shape(info: TensorInfo, rows: int) -> tuple[int, ...]:
    return (rows, *info.shape[1:]) if info.shape else ()


def _identity(status: os.stat_result) -> tuple[int, ...]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


class ContentDigest:
    """The digest of a checkpoint's content, gathered while it is read: over sorted (name, dtype, shape, digest).

    Another sharding of the same weights, another order or other metadata have the same digest. `formulas` is what makes
    a content besides its tensors, such as an adapter's scales.
    """

    def __init__(self, formulas: str = "") -> None:
        self._formulas = formulas
        self._tensors: dict[str, TensorInfo] = {}
        self._bytes: dict[str, int] = {}  # of each tensor, so far
        self._running: dict[str, Digest] = {}  # of those that are not at their end
        self._done: dict[str, str] = {}

    def add(self, info: TensorInfo, block: Tensor) -> None:
        """Add the next block of rows of one tensor, in the dtype it is stored in or as bytes."""
        self.begin(info)
        if not block.numel():
            return
        running = self._running.setdefault(info.name, Digest())
        running.update(memory_of(block))
        self._bytes[info.name] += block.numel() * block.element_size()
        if self._bytes[info.name] == info.nbytes:
            self._done[info.name] = self._running.pop(info.name).hexdigest()

    def begin(self, info: TensorInfo) -> int:
        """Return how many bytes of a tensor were added so far; from now on it counts, even if it has none."""
        self._tensors[info.name] = info
        return self._bytes.setdefault(info.name, 0)

    def of(self, name: str) -> str:
        """Return the digest of one tensor's bytes."""
        return self._done[name] if name in self._done else self._running.get(name, Digest()).hexdigest()

    def hexdigest(self) -> str:
        """Return the digest of all that was added."""
        whole = Digest()
        for name, info in sorted(self._tensors.items()):
            whole.update(json.dumps([name, info.dtype, list(info.shape), self.of(name)]).encode() + b"\n")
        whole.update(self._formulas.encode())
        return whole.hexdigest()
