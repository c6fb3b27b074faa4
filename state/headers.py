"""The header of a safetensors file, parsed with bounds: what lies where, without reading any weight.

The format (github.com/huggingface/safetensors, README): eight bytes of little-endian header length, a JSON object
{name: {dtype, shape, data_offsets}}, then the bytes of the tensors without gap or overlap.
"""

import errno
import json
import math
import os
import stat
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from .errors import Busy, NotPermitted, Refused, Unavailable
from .records import Layout, Reason, TensorInfo
from .users import name_of

MAX_HEADER = 16 * 2**20  # bytes; 30,000 tensors need about 4 MiB
MAX_NAME = 512  # bytes

ITEMSIZE = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
    "I32": 4, "U32": 4, "F32": 4, "F64": 8, "I64": 8, "U64": 8,
}  # fmt: skip
FLOATING = frozenset({"F16", "BF16", "F32", "F64"})


def open_regular(path: str | Path) -> int:
    """Open a regular file for reading and return its descriptor; a pipe or a device never blocks us.

    Raises Busy if it is gone, NotPermitted with mode and owner if we may not read it, Refused if it is no file.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise Busy(f"{path} is gone") from None
    except PermissionError:
        raise NotPermitted(f"cannot read {path} ({owner_of(path)})", "let the daemon's user read it: chmod") from None
    except OSError as error:
        if error.errno in (errno.ENXIO, errno.ELOOP, errno.ENOTDIR, errno.ENAMETOOLONG):  # a socket, or a bad link
            raise Refused(_no_file(path)) from None
        raise Unavailable(f"cannot open {path}: {error.strerror}", "it is tried again") from None
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise Refused(_no_file(path))
    return fd


def _no_file(path: str | Path) -> Reason:
    return Reason("not-a-file", f"{path} is no regular file", "a file", "copy the weights themselves")


def read_header(path: str | Path) -> dict[str, TensorInfo]:
    """Return the tensors of one file, in the order of their bytes.

    Raises Busy while the file is shorter than its header says (it is still being written), and Refused when the
    header cannot be one of a whole file however long one waits.
    """
    fd = open_regular(path)
    try:
        size = os.fstat(fd).st_size
        head = os.pread(fd, 8, 0)
        if head.startswith(b"version "):
            raise Busy(f"{path} is a git-lfs pointer, not the weights", "run: git lfs pull")
        if len(head) < 8:
            raise Busy(f"{path} is not complete: {size} bytes, less than any safetensors file")
        length = int.from_bytes(head, "little")
        if not 2 <= length <= MAX_HEADER:
            raise _bad(path, f"a header of {length} bytes", f"2 to {MAX_HEADER} bytes")
        if 8 + length > size:
            raise Busy(f"{path} is not complete: {size} bytes, its header alone needs {8 + length}")
        raw = os.pread(fd, length, 8)
    finally:
        os.close(fd)
    tensors = _tensors(path, raw, 8 + length)
    end = max((tensor.start + tensor.nbytes for tensor in tensors), default=8 + length)
    if size < end:
        raise Busy(f"{path} is not complete: {size} of {end} bytes")
    if size > end:
        raise _bad(path, f"{size - end} bytes after the last tensor", "none")
    return {tensor.name: tensor for tensor in tensors}


def layout_of(paths: Sequence[str | Path]) -> Layout:
    """Return the tensors of several safetensors files as one layout; a name in two files is the later one's."""
    tensors: dict[str, TensorInfo] = {}
    for path in paths:
        tensors.update(read_header(path))
    return Layout(tensors, tuple(str(path) for path in paths))


def _tensors(path: str | Path, raw: bytes, data_start: int) -> list[TensorInfo]:
    """Return the header's entries sorted by place, after checking that they tile the data without gap or overlap."""
    try:
        if not raw.startswith(b"{"):
            raise ValueError("the header does not start with '{'")
        entries = json.loads(raw.decode(), object_pairs_hook=_no_duplicates, parse_constant=_no_constant)
        if not isinstance(entries.pop("__metadata__", {}), dict):
            raise TypeError("its __metadata__ is no object")
        tensors = [_tensor(str(path), name, entry, data_start) for name, entry in entries.items()]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _bad(path, f"a header that cannot be read ({error})", "a safetensors header") from None
    tensors.sort(key=lambda tensor: (tensor.start, tensor.nbytes))
    place = data_start
    for tensor in tensors:
        if tensor.start != place:
            raise _bad(path, f"{tensor.name!r} starts at byte {tensor.start}", f"byte {place}: no gap, no overlap")
        place += tensor.nbytes
    return tensors


def _tensor(path: str, name: str, entry: dict[str, Any], data_start: int) -> TensorInfo:
    dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
    if len(name.encode()) > MAX_NAME:
        raise ValueError(f"a name of {len(name.encode())} bytes")
    if dtype not in ITEMSIZE:
        raise ValueError(f"{name!r} has dtype {dtype!r}, which mergd does not read")
    if type(shape) is not list or not all(type(n) is int and 0 <= n < 2**48 for n in (*shape, begin, end)):
        raise ValueError(f"{name!r} has a shape or place that cannot be")
    nbytes = ITEMSIZE[dtype] * math.prod(shape)
    if math.prod(length or 1 for length in shape) >= 2**62:
        raise ValueError(f"{name!r} has the shape {shape}")
    if end - begin != nbytes:
        raise ValueError(f"{name!r} has {end - begin} bytes for shape {shape} of {dtype}")
    return TensorInfo(name, dtype, tuple(shape), path, data_start + begin, nbytes)


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = sorted(name for name, _ in pairs)
    for one, other in pairwise(names):
        if one == other:
            raise ValueError(f"{one!r} stands twice")
    return dict(pairs)


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is no JSON number")


def _bad(path: str | Path, found: str, expected: str) -> Refused:
    return Refused(Reason("unreadable", f"{found} in {Path(path).name}", expected, "save the checkpoint again"))


def owner_of(path: str | Path) -> str:
    """Return mode and owner of a file, for a message."""
    try:
        status = os.stat(path)
    except OSError:
        return "in a folder that we cannot enter"
    return f"mode {stat.S_IMODE(status.st_mode):04o}, owner {name_of(status.st_uid)}"
