"""The header of a safetensors file, parsed with bounds: what lies where, without reading any weight.

The format (github.com/huggingface/safetensors, README): eight bytes of little-endian header length, a JSON object
{name: {dtype, shape, data_offsets}}, then the bytes of the tensors without gap or overlap.
"""

import errno
import math
import os
import re
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .errors import Busy, NotPermitted, Refused, Unavailable
from .header_text import JsonText
from .records import Layout, Reason, TensorInfo
from .users import name_of
from .wording import shown, size

MAX_HEADER = 16 * 2**20  # bytes; 30,000 tensors need about 4 MiB
MAX_HEADERS = 4 * MAX_HEADER  # bytes, of all files of a checkpoint together
MAX_NAME = 512  # bytes
MAX_TENSORS = 250_000  # of a model that nothing is known of; a checkpoint may have far fewer
MAX_METADATA = 10_000  # members
NUMBERS = 2**48  # what a length or an offset stays below

BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16,
    "I32": 32, "U32": 32, "F32": 32, "F64": 64, "I64": 64, "U64": 64,
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "C64": 64,
}  # fmt: skip
FLOATING = frozenset({"F16", "BF16", "F32", "F64"})
COUNTING = frozenset({"BOOL", "U8", "I8", "I16", "U16", "I32", "U32", "I64", "U64"})


def open_regular(path: str | Path) -> int:
    """Open a regular file for reading and return its descriptor; a pipe or a device never blocks us.

    Raises Busy if it is gone, NotPermitted with mode and owner if we may not read it, Refused if it is no file.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise Busy(f"{_name(path)} is gone") from None
    except PermissionError:
        found = f"cannot read {_name(path)} ({owner_of(path)})"
        raise NotPermitted(found, "let the daemon's user read it: chmod") from None
    except OSError as error:
        if error.errno in (errno.ENXIO, errno.ELOOP, errno.ENOTDIR, errno.ENAMETOOLONG):  # a socket, or a bad link
            raise Refused(_no_file(path)) from None
        raise Unavailable(f"cannot open {_name(path)}: {error.strerror}", "it is tried again") from None
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise Refused(_no_file(path))
    return fd


@contextmanager
def reading(path: str | Path) -> Iterator[None]:
    """Name the file that could not be read. Raises Unavailable: it may be read another time, or another one instead."""
    try:
        yield
    except OSError as error:
        raise Unavailable(f"cannot read {_name(path)}: {error.strerror}", "it is tried again") from None


def owner_of(path: str | Path) -> str:
    """Return mode and owner of a file, for a message."""
    try:
        status = os.stat(path)
    except OSError:
        return "in a folder that we cannot enter"
    return f"mode {stat.S_IMODE(status.st_mode):04o}, owner {name_of(status.st_uid)}"


def read_bounded(path: str | Path, most: int) -> bytes:
    """Return a small file whole. Raises Refused if it has more than `most` bytes, and what `open_regular` raises."""
    fd = open_regular(path)
    try:
        nbytes = os.fstat(fd).st_size
        if nbytes > most:
            raise _bad(path, f"{size(nbytes)}", f"at most {size(most)}")
        with reading(path):
            return os.read(fd, nbytes)
    finally:
        os.close(fd)


def read_header(path: str | Path, most: int = MAX_TENSORS) -> dict[str, TensorInfo]:
    """Return the tensors of one file, at most so many, in the order of their bytes.

    Raises Busy while the file is shorter than its header says (it is still being written), and Refused when the
    header cannot be one of a whole file however long one waits.
    """
    return _parsed(path, *_raw_header(path, MAX_HEADER), most)


def layout_of(paths: Sequence[str | Path], most: int = MAX_TENSORS) -> Layout:
    """Return the tensors of several safetensors files, at most so many, as one layout.

    Raises what `read_header` raises, and Refused if a name stands in two files.
    """
    tensors: dict[str, TensorInfo] = {}
    room = MAX_HEADERS
    for path in paths:
        raw, nbytes = _raw_header(path, min(room, MAX_HEADER))
        room -= len(raw)
        for name, info in _parsed(path, raw, nbytes, most).items():
            if name in tensors:
                raise _bad(path, f"'{shown(name)}', which stands in {_name(tensors[name].file)} too,", "it in one file")
            tensors[name] = info
        if len(tensors) > most:
            raise _too_many(path, most)
    return Layout(tensors, tuple(str(path) for path in paths))


def _raw_header(path: str | Path, most: int) -> tuple[bytes, int]:
    """Return a file's header and the file's size, in bytes."""
    fd = open_regular(path)
    try:
        nbytes = os.fstat(fd).st_size
        with reading(path):
            head = os.pread(fd, 8, 0)
        if head.startswith(b"version "):
            raise Busy(f"{_name(path)} is a git-lfs pointer, not the weights", "run: git lfs pull")
        if len(head) < 8:
            raise Busy(f"{_name(path)}, which is missing its header: it has {nbytes} bytes")
        length = int.from_bytes(head, "little")
        if not 2 <= length <= most:
            raise _bad(path, f"a header of {length} bytes", f"2 to {most} bytes")
        with reading(path):
            raw = os.pread(fd, length, 8)
        if len(raw) < length:
            raise Busy(f"{_part(path)}, which is missing {size(length - len(raw))} of its header")
        return raw, nbytes
    finally:
        os.close(fd)


def _parsed(path: str | Path, raw: bytes, nbytes: int, most: int) -> dict[str, TensorInfo]:
    """Return the tensors of a header, which must tile all that follows it in the file."""
    tensors = _tiled(path, _entries(path, raw, most), 8 + len(raw))
    end = tensors[-1].start + tensors[-1].nbytes if tensors else 8 + len(raw)
    if nbytes < end:
        raise Busy(f"{_part(path)}, which is missing {size(end - nbytes)}")
    if nbytes > end:
        raise _bad(path, f"{nbytes - end} bytes after the last tensor", "none")
    return {tensor.name: tensor for tensor in tensors}


def _entries(path: str | Path, raw: bytes, most: int) -> list[TensorInfo]:
    tensors: list[TensorInfo] = []
    try:
        if not raw.startswith(b"{"):
            raise ValueError("it does not start with '{'")
        text = JsonText(raw)
        for name in text.members():
            if name == "__metadata__":
                text.strings(MAX_METADATA)
            elif len(tensors) == most:
                raise _too_many(path, most)
            else:
                tensors.append(_tensor(str(path), name, text.entry(), 8 + len(raw)))
        text.end(padding=" ")
    except (ValueError, RecursionError) as error:
        raise _bad(path, f"a header that cannot be read ({error})", "a safetensors header") from None
    return tensors


def _tensor(path: str, name: str, entry: dict[str, Any], data_start: int) -> TensorInfo:
    if len(name) > MAX_NAME or len(name.encode()) > MAX_NAME:
        raise ValueError(f"a name of {len(name.encode())} bytes, '{shown(name)}'")
    if entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"'{shown(name)}' has the fields {shown(sorted(entry))}")
    dtype, shape, place = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        raise ValueError(f"'{shown(name)}' has dtype {shown(dtype)}, which nobody knows")
    if not _numbers(shape) or not _numbers(place) or len(place) != 2:
        raise ValueError(f"'{shown(name)}' has a shape or place that cannot be")
    if math.prod(length or 1 for length in shape) >= 2**62:
        raise ValueError(f"'{shown(name)}' has the shape {shown(shape)}")
    if BITS[dtype] * math.prod(shape) != 8 * (place[1] - place[0]):
        raise ValueError(f"'{shown(name)}' has {place[1] - place[0]} bytes for shape {shown(shape)} of {dtype}")
    return TensorInfo(name, dtype, tuple(shape), path, data_start + place[0], place[1] - place[0])


def _numbers(value: Any) -> bool:
    """Whether it is a list of whole numbers below the bound; true and false are none."""
    return isinstance(value, list) and all(type(n) is int and 0 <= n < NUMBERS for n in value)


def _tiled(path: str | Path, tensors: Iterable[TensorInfo], data_start: int) -> list[TensorInfo]:
    """Return tensors in the order of their bytes. Raises Refused unless they lie there without gap or overlap."""
    ordered = sorted(tensors, key=lambda tensor: (tensor.start, tensor.nbytes))
    place = data_start
    for tensor in ordered:
        if tensor.start != place:
            found = f"'{shown(tensor.name)}' at byte {tensor.start}"
            raise _bad(path, found, f"it at byte {place}: no gap, no overlap")
        place += tensor.nbytes
    return ordered


# ---------------------------------------------------------------------------------------------------------- reasons


def _name(path: str | Path) -> str:
    return shown(Path(path).name)


def _part(path: str | Path) -> str:
    """Return what people call a file: its name, or which shard it is."""
    shard = re.fullmatch(r".*-0*(\d+)-of-0*(\d+)\.safetensors", Path(path).name, re.ASCII)
    return f"shard {shard[1]} of {shard[2]}" if shard else _name(path)


def _no_file(path: str | Path) -> Reason:
    return Reason("not-a-file", f"{_name(path)}, which is no regular file", "a file", "copy the weights themselves")


def _bad(path: str | Path, found: str, expected: str) -> Refused:
    return Refused(Reason("unreadable", f"{found} in {_name(path)}", expected, "save the checkpoint again"))


def _too_many(path: str | Path, most: int) -> Refused:
    found, expected = f"more than {most:,} tensors in {_name(path)}", "about as many as the base model has"
    return Refused(Reason("too-many-tensors", found, expected, "save the whole model, and nothing else"))
