"""Safetensors files made by hand, byte by byte, for what no library would write."""

import json
import struct
from collections.abc import Mapping
from math import prod
from typing import Any

MIB = 2**20
Tensors = Mapping[str, tuple[str, tuple[int, ...]]]  # name -> dtype, shape

BASE: Tensors = {  # what support.models.tiny_base has
    "embed_tokens.weight": ("F32", (11, 6)),
    "layer.matrix.weight": ("F32", (6, 6)),
    "layer.matrix.bias": ("F32", (6,)),
    "layer.tall.weight": ("F32", (9, 4)),
    "layer.wide.weight": ("F32", (4, 9)),
    "position_ids": ("I64", (5,)),
}
BITS = {"F4": 4, "F6_E2M3": 6, "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F16": 16, "BF16": 16, "F32": 32,
        "I64": 64, "F64": 64, "C64": 64}  # fmt: skip


def entries(tensors: Tensors, start: int = 0) -> dict[str, dict[str, Any]]:
    """Return the header's entries of tensors that lie one behind the other."""
    found = {}
    for name, (dtype, shape) in tensors.items():
        end = start + BITS[dtype] * prod(shape) // 8
        found[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
        start = end
    return found


def file(header: str | bytes | Mapping[str, Any], data: int | bytes = 0, length: int | None = None) -> bytes:
    """Return a file of this header and data (a number: so many zeros), which may claim another header length."""
    text = json.dumps(header) if isinstance(header, Mapping) else header
    raw = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    content = bytes(data) if isinstance(data, int) else data
    return struct.pack("<Q", len(raw) if length is None else length) + raw + content


def model(more: Tensors | None = None, **changes: Any) -> bytes:
    """Return a whole checkpoint of the base model, with more tensors; `changes` are keys of the header."""
    header = entries({**BASE, **(more or {})})
    return file({**changes, **header}, end(header))


def end(header: Mapping[str, Mapping[str, Any]]) -> int:
    """Return how many bytes of data a header describes."""
    return max(int(entry["data_offsets"][1]) for name, entry in header.items() if name != "__metadata__")


def spelled(old: str, new: str, more: int = 0) -> bytes:
    """Return a whole checkpoint whose header's text has something spelled otherwise, and so many more bytes of data."""
    header = entries(BASE)
    text = json.dumps(header, separators=(",", ":"))
    assert old in text, old
    return file(text.replace(old, new, 1), end(header) + more)


def beside(text: str, more: int = 0) -> bytes:
    """Return a whole checkpoint with one more member in its header, spelled out, and so many more bytes of data."""
    return spelled("{", "{" + text + ",", more)


def small(name: str, dtype: str = "U8", shape: str = "[0]", place: str | None = None) -> str:
    """Return one member of a header, spelled out: an empty tensor behind all others, unless told otherwise."""
    return f'{name}:{{"dtype":"{dtype}","shape":{shape},"data_offsets":{place or f"[{LAST},{LAST}]"}}}'


LAST = end(entries(BASE))  # bytes of data that the base model has
