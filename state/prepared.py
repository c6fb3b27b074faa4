"""What was prepared for the next fold, as files: a cache in `prepared/000007`, which may go at any time, whole or in part.

A chunk has the tensors of consecutive weights, then its index, then the index's length and digest. It is written aside and
renamed, but not synced: what a crash leaves of it does not read back as it was written, and then it is as if it were not there.
"""

import json
import os
import shutil
import struct
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor

from .digests import digest_of
from .reading import TORCH_DTYPE, memory_of
from .records import Weight
from .store import PRIVATE

CHUNK = (
    4 * 2**20
)  # bytes of tensors, at least, in each chunk but the last: a kill loses no more than that, and one weight
END = struct.Struct("<Q32s")  # behind the index: its length and its digest
NAMES = {dtype: name for name, dtype in TORCH_DTYPE.items()}

Rows = tuple[int, int] | None
Place = tuple[str, tuple[int, ...], str, Rows]  # what something is prepared for, as `place_of` says


def place_of(w: Weight, statistic: object, rows: Rows, *, factors: bool = False) -> Place:
    """Return what something is prepared for: a weight, or a block of its rows, and one of its statistics.

    factors: whether its slot is kept as two factors, and is folded so.
    """
    return w.name, w.shape, f"{statistic!r}{' as factors' if factors else ''}", rows


@dataclass(frozen=True)
class _Stored:
    """One tensor of a chunk."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]  # a matrix product of other strides may have another last bit
    start: int
    nbytes: int
    digest: str


Index = dict[Place, list[_Stored]]


def forget(prepared: Path, but: Path | None = None) -> bool:
    """Remove what is prepared for any version, or any but one; returns whether there was anything."""
    try:
        going = [path for path in prepared.iterdir() if path != but]
    except OSError:
        return False
    for path in going:
        shutil.rmtree(path, ignore_errors=True)  # what was written into it meanwhile goes next time
    return bool(going)


class Prepared:
    """What is prepared for folds onto one version. Nothing is, of what is not there, or is not as it was written."""

    def __init__(self, folder: Path | None = None, key: str = "") -> None:
        self.nbytes = 0  # read so far
        self._folder, self._key = folder, key

    @cached_property
    def _places(self) -> dict[Place, tuple[Path, list[_Stored]]]:
        found = _indexes(self._folder, self._key) if self._folder else {}
        return {place: (path, stored) for path, index in found.items() for place, stored in index.items()}

    def size(self, w: Weight, statistic: object) -> int:
        """Return the bytes of what is prepared for one statistic of a whole weight; 0 if nothing is."""
        _, stored = self._places.get(place_of(w, statistic, None), (None, []))
        return sum(tensor.nbytes for tensor in stored)

    def of(self, w: Weight, statistic: object, rows: Rows, *, factors: bool = False) -> Mapping[str, Tensor]:
        """Return what is prepared for one statistic of a weight, or of a block of its rows; else nothing."""
        path, wanted = self._places.get(place_of(w, statistic, rows, factors=factors), (None, []))
        if path is None or not wanted:
            return {}
        try:
            found = _read(path, wanted)
        except OSError:
            return {}
        self.nbytes += sum(stored.nbytes for stored in wanted)
        return found


class Preparation:
    """The same while it is made: chunks that are there stay, if all that they have is wanted."""

    def __init__(self, folder: Path, key: str, wanted: Callable[[Place], bool]) -> None:
        folder.parent.mkdir(mode=PRIVATE, exist_ok=True)
        folder.mkdir(mode=PRIVATE, exist_ok=True)
        kept = {path: index for path, index in _indexes(folder, key).items() if all(map(wanted, index))}
        for path in set(folder.iterdir()) - kept.keys():
            path.unlink()
        self.places = {place for index in kept.values() for place in index}
        self.nbytes = sum(path.stat().st_size for path in kept)
        self._folder, self._key = folder, key
        self._number = max((int(path.name) for path in kept), default=0)
        self._index: Index = {}
        self._fd, self._at = -1, 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            if error is None:
                self._close_chunk()
        finally:
            if self._fd >= 0:
                os.close(self._fd)
                self._aside.unlink(missing_ok=True)
                self._fd = -1

    @property
    def _aside(self) -> Path:
        return self._folder / ".aside"

    def add(self, place: Place, tensors: Mapping[str, Tensor]) -> None:
        """Write what was prepared. Nothing, if a tensor has gaps: then nothing would tell what a fold makes of them."""
        if self._fd < 0:
            self._fd = os.open(self._aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            self._index, self._at = {}, 0
        whole = all(map(_is_dense, tensors.values()))
        self._index[place] = [self._put(name, tensor) for name, tensor in tensors.items()] if whole else []
        self.places.add(place)
        if self._at >= CHUNK:
            self._close_chunk()

    def _put(self, name: str, tensor: Tensor) -> _Stored:
        data, start = memory_of(tensor), self._at
        self._write(data)
        shape, strides = tuple(tensor.shape), tuple(tensor.stride())
        return _Stored(name, NAMES[tensor.dtype], shape, strides, start, len(data), digest_of(data))

    def _write(self, data: memoryview | bytes) -> None:
        done = 0
        while done < len(data):
            done += os.write(self._fd, data[done : done + 2**30])
        self._at += done
        self.nbytes += done

    def _close_chunk(self) -> None:
        """End the chunk with its index, and let it count."""
        if self._fd < 0:
            return
        entries = [(place, [asdict(stored) for stored in found]) for place, found in self._index.items()]
        raw = json.dumps({"key": self._key, "entries": entries}).encode()
        self._write(raw + END.pack(len(raw), bytes.fromhex(digest_of(raw))))
        os.close(self._fd)
        self._fd = -1
        self._number += 1
        self._aside.rename(self._folder / f"{self._number:06d}")


def _is_dense(tensor: Tensor) -> bool:
    """Whether a tensor's numbers lie in one piece of memory, in whatever order."""
    return not tensor.numel() or tensor.clone().stride() == tensor.stride()


def _indexes(folder: Path, key: str) -> dict[Path, Index]:
    """Return the index of each chunk that is whole and has this key."""
    try:
        paths = sorted(path for path in folder.iterdir() if path.name.isdecimal())
    except OSError:
        return {}
    found = {path: _index_of(path, key) for path in paths}
    return {path: index for path, index in found.items() if index is not None}


def _index_of(path: Path, key: str) -> Index | None:
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            length, digest = END.unpack(os.pread(file.fileno(), END.size, max(0, size - END.size)))
            raw = os.pread(file.fileno(), length, size - END.size - length)
    except (OSError, struct.error, OverflowError, MemoryError):  # gone, cut, or not to be read
        return None
    if digest_of(raw) != digest.hex():
        return None
    said = json.loads(raw)
    return (
        {_place(place): [_stored(one) for one in found] for place, found in said["entries"]}
        if said["key"] == key
        else None
    )


def _place(said: list[Any]) -> Place:
    name, shape, statistic, rows = said
    return name, tuple(shape), statistic, tuple(rows) if rows else None


def _stored(said: dict[str, Any]) -> _Stored:
    return _Stored(**said | {"shape": tuple(said["shape"]), "strides": tuple(said["strides"])})


def _read(path: Path, wanted: list[_Stored]) -> dict[str, Tensor]:
    """Return the tensors; none, if one is not as it was written."""
    found: dict[str, Tensor] = {}
    with path.open("rb", buffering=0) as file:
        for stored in wanted:
            tensor = torch.empty_strided(stored.shape, stored.strides, dtype=TORCH_DTYPE[stored.dtype])
            memory = memory_of(tensor)
            done = 0
            while done < stored.nbytes and (got := os.preadv(file.fileno(), [memory[done:]], stored.start + done)):
                done += got
            if digest_of(memory) != stored.digest:
                return {}
            found[stored.name] = tensor
    return found
