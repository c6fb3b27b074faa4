"""A corpus of hostile, broken and merely odd checkpoints, made by code: each with the verdict that it must get.

The base model is support.models.tiny_base. A recipe puts one place into a folder: a model folder, or a lone file.
"""

import gzip
import io
import os
import socket
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hostile.adapters import ADAPTERS
from hostile.indexes import INDEXES
from hostile.making import BASE, MIB, beside, end, entries, file, model, small, spelled

Expected = Literal["admitted", "refused", "incomplete"]
WHOLE = model()
HEADER = int.from_bytes(WHOLE[:8], "little")


@dataclass(frozen=True)
class Recipe:
    """How one place of the corpus is made, and what must become of it."""

    name: str
    expected: Expected
    make: Callable[[Path], None]  # given the place, a folder that is not there yet


def one_file(content: Callable[[], bytes]) -> Callable[[Path], None]:
    """Return how a model folder with this `model.safetensors` is made."""

    def make(place: Path) -> None:
        place.mkdir()
        (place / "model.safetensors").write_bytes(content())

    return make


def with_a_hole(content: Callable[[], bytes], nbytes: int) -> Callable[[Path], None]:
    """Return how a file is made that begins so, and goes on with a hole of so many bytes."""

    def make(place: Path) -> None:
        one_file(content)(place)
        path = place / "model.safetensors"
        os.truncate(path, path.stat().st_size + nbytes)

    return make


def special(create: Callable[[Path], object]) -> Callable[[Path], None]:
    """Return how a folder is made in which something else lies where the weights should."""

    def make(place: Path) -> None:
        place.mkdir()
        create(place / "model.safetensors")

    return make


def make_socket(path: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # a socket's path must be short
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
    finally:
        os.chdir(here)


def zipped() -> bytes:
    with io.BytesIO() as target:
        with zipfile.ZipFile(target, "w") as archive:
            archive.writestr("archive/data.pkl", b"\x80\x02.")
        return target.getvalue()


def quantised(dtype: str) -> bytes:
    return model({"layer.matrix.weight": (dtype, (6, 6))})


def many(count: int, name: str = "{}") -> bytes:
    return beside(",".join(small(f'"{name.format(k)}"') for k in range(count)))


ADMITTED: dict[str, Callable[[], bytes]] = {
    "a fine-tune": lambda: WHOLE,
    "metadata of strings": lambda: model(__metadata__={"format": "pt", "notes": '{"a": [1, 2]}', "": "\n\x1b"}),
    "15 MiB of metadata": lambda: model(__metadata__={"a": "b" * 15 * MIB}),
    "padding up to the bound": lambda: file(WHOLE[8 : 8 + HEADER].ljust(16 * MIB), WHOLE[8 + HEADER :]),
    "spaces and new lines between": lambda: spelled(":{", " :\r\n\t { "),
    "names spelled with escapes": lambda: spelled("embed", "\\u0065mb\\u0065d"),
    "other dtypes": lambda: model({n: ("BF16" if d == "F32" else "I8", s) for n, (d, s) in BASE.items()}),
    "no buffers": lambda: file(h := entries({n: v for n, v in BASE.items() if n != "position_ids"}), end(h)),
    "buffers of its own": lambda: model({"mask": ("BOOL", (3, 3)), "empty": ("U8", (0, 2**40)), "step": ("I64", ())}),
    "tensors in another order": lambda: file(dict(reversed(entries(BASE).items())), end(entries(BASE))),
    "a name of 512 bytes": lambda: beside(small('"' + "ä" * 256 + '"')),
    "names with control characters, of buffers": lambda: beside(small('"a\\u0000\\n\\u001b[31m"')),
}

REFUSED: dict[str, Callable[[], bytes]] = {
    # ---- keys that stand twice: a checker and a loader may see different tensors
    "a tensor twice": lambda: beside(small('"position_ids"')),
    "a tensor twice, once with escapes": lambda: beside(small('"positio\\u006e_ids"')),
    "a field twice": lambda: spelled('"dtype":"F32"', '"dtype":"F32","dtype":"F32"'),
    "a field twice, once with escapes": lambda: spelled('"dtype":"F32"', '"dtype":"F32","d\\u0074ype":"F32"'),
    "metadata twice": lambda: beside('"__metadata__":{},"__metadata__":{}'),
    "a key of the metadata twice": lambda: beside('"__metadata__":{"a":"b","a":"b"}'),
    # ---- places
    "an overlap": lambda: spelled('"data_offsets":[264,408]', '"data_offsets":[260,404]'),
    "the same bytes twice": lambda: beside(small('"a"', "F32", "[6]", "[408,432]")),
    "a gap": lambda: beside(small('"a"', "F32", "[1]", "[764,768]"), 8),
    "a gap at the start": lambda: file(entries(BASE, 8), 8 + end(entries(BASE))),
    "begin after end": lambda: spelled("[264,408]", "[408,264]"),
    "a place of one number": lambda: spelled("[264,408]", "[264]"),
    "a place of three numbers": lambda: spelled("[264,408]", "[264,408,408]"),
    "an empty tensor in the middle of another": lambda: beside(small('"a"', place="[300,300]")),
    "bytes after the last tensor": lambda: WHOLE + b"\0",
    # ---- numbers
    "a negative length": lambda: spelled('"shape":[6]', '"shape":[-6]'),
    "minus zero": lambda: spelled("[0,264]", "[-0,264]"),
    "a float in the shape": lambda: spelled('"shape":[6]', '"shape":[6.0]'),
    "an exponent in the shape": lambda: spelled('"shape":[6]', '"shape":[6e0]'),
    "a number with a zero in front": lambda: spelled('"shape":[6]', '"shape":[06]'),
    "true for one": lambda: spelled('"shape":[6]', '"shape":[6,true]'),
    "NaN": lambda: spelled('"shape":[6]', '"shape":[NaN]'),
    "Infinity in the metadata": lambda: beside('"__metadata__":{"a":Infinity}'),
    "a shape beyond 64 bits": lambda: beside(small('"a"', shape="[0,18446744073709551616]")),
    "a shape whose product overflows": lambda: beside(small('"a"', shape="[1099511627776,1099511627776,0]")),
    "a number of 5,000 digits": lambda: spelled('"shape":[6]', f'"shape":[{"9" * 5000}]'),
    "a number of a million digits": lambda: spelled('"shape":[6]', f'"shape":[{"9" * 10**6}]'),
    "a shape of 8 million lengths": lambda: spelled('"shape":[6]', f'"shape":[{"1," * 8_000_000}6]'),
    "a shape of 2,100 lengths": lambda: beside(small('"a"', shape="[" + "1," * 2100 + "0]")),
    "a shape that is text": lambda: spelled('"shape":[6]', '"shape":"6"'),
    "a shape that does not fit": lambda: spelled('"shape":[6]', '"shape":[7]'),
    # ---- JSON
    "a byte order mark": lambda: file(b"\xef\xbb\xbf" + WHOLE[8 : 8 + HEADER], WHOLE[8 + HEADER :]),
    "a space in front": lambda: file(b" " + WHOLE[8 : 8 + HEADER], WHOLE[8 + HEADER :]),
    "padding with new lines": lambda: file(WHOLE[8 : 8 + HEADER] + b"\n", WHOLE[8 + HEADER :]),
    "padding with zeros": lambda: file(WHOLE[8 : 8 + HEADER] + b"\0", WHOLE[8 + HEADER :]),
    "two objects": lambda: file(WHOLE[8 : 8 + HEADER] + b"{}", WHOLE[8 + HEADER :]),
    "a comma at the end": lambda: file(WHOLE[8 : 7 + HEADER] + b",}", WHOLE[8 + HEADER :]),
    "UTF-16": lambda: file(WHOLE[8 : 8 + HEADER].decode().encode("utf-16-le"), WHOLE[8 + HEADER :]),
    "no UTF-8": lambda: file(WHOLE[8 : 8 + HEADER].replace(b"embed", b"\xffmbed"), WHOLE[8 + HEADER :]),
    "half a surrogate pair in a name": lambda: beside(small('"\\ud800"')),
    "half a surrogate pair in the metadata": lambda: beside('"__metadata__":{"a":"\\udfff"}'),
    "a surrogate as UTF-8": lambda: beside(small('"\ud800"')),
    "a raw control character": lambda: beside(small('"a\x01"')),
    "a comment": lambda: spelled("{", "{/**/"),
    "single quotes": lambda: spelled('"shape"', "'shape'"),
    "a list": lambda: file(b"[]", 0),
    "null for an entry": lambda: beside('"a":null'),
    "a list for an entry": lambda: beside('"a":["U8",[0],[760,760]]'),
    "a field more": lambda: spelled('"dtype":"F32"', '"dtype":"F32","more":1'),
    "a field less": lambda: spelled('"shape":[6],', ""),
    "metadata that is a list": lambda: beside('"__metadata__":[]'),
    "metadata that is null": lambda: beside('"__metadata__":null'),
    "metadata that is no string": lambda: beside('"__metadata__":{"a":1}'),
    "nested lists, a million deep": lambda: beside('"a":' + "[" * 2**20 + "]" * 2**20),
    "nested objects, a million deep": lambda: beside('{"a":' * 2**20),
    "nested lists in the metadata": lambda: beside('"__metadata__":{"a":' + "[" * 2**20),
    "five million empty lists": lambda: beside('"a":[' + "[]," * 5_000_000 + "0]"),
    "a million metadata": lambda: beside('"__metadata__":{' + ",".join(f'"{k}":""' for k in range(2**20)) + "}"),
    "the same metadata a million times": lambda: beside('"__metadata__":{' + '"a":"",' * 2**20 + '"b":""}'),
    # ---- names and dtypes
    "a name of 513 bytes": lambda: beside(small('"' + "a" * 513 + '"')),
    "a name of 5 MB": lambda: beside(small('"' + "a" * 5_000_000 + '"')),
    "a name of 5 MB, twice": lambda: beside(",".join([small('"' + "a" * 5_000_000 + '"')] * 2)),
    "a name of 2.6 million escapes": lambda: beside(small('"' + "\\u4e00" * 2_600_000 + '"')),
    "a name of 4 million emoji": lambda: beside(small('"' + "😀" * 4_000_000 + '"')),
    "a weight with a path for its name": lambda: model({"../../etc/passwd": ("F32", (1,))}),
    "a weight with escapes for its name": lambda: model({"a\x1b[31m\n\0": ("F32", (1,))}),
    "a dtype that is not known": lambda: spelled('"dtype":"F32"', '"dtype":"F33"'),
    "a dtype that is a list": lambda: spelled('"dtype":"F32"', '"dtype":["F32"]'),
    "a dtype of 5 MB": lambda: spelled('"dtype":"F32"', f'"dtype":"{"F" * 5_000_000}"'),
    "4 bit floats": lambda: quantised("F4"),
    "6 bit floats": lambda: quantised("F6_E2M3"),
    "8 bit floats": lambda: quantised("F8_E4M3"),
    "complex numbers": lambda: quantised("C64"),
    "integers for a weight": lambda: quantised("I8"),
    "scales beside the weights": lambda: model({"layer.matrix.weight_scale": ("F8_E8M0", (6,))}),
    "half a byte": lambda: beside(small('"a"', "F4", "[1]")),
    # ---- how many
    "a thousand tensors too many": lambda: many(1001),
    "as many tensors as a header holds": lambda: many(200_000),
    # ---- lengths
    "a header length of 0": lambda: file(b"", 0),
    "a header length of 1": lambda: file(b"{", 8),
    "a header length of 2^63": lambda: file(WHOLE[8 : 8 + HEADER], WHOLE[8 + HEADER :], length=2**63),
    "a header length of 2^64 - 1": lambda: b"\xff" * 64,
    "a header over 16 MiB": lambda: file(b"{}".ljust(16 * MIB + 1)),
    "a header length that is one too small": lambda: WHOLE[:8].replace(WHOLE[:1], bytes([WHOLE[0] - 1])) + WHOLE[8:],
    # ---- other content under this name
    "a web page": lambda: b"<!DOCTYPE html><html><head><title>404</title></head></html>",
    "a pickle": lambda: b"\x80\x04\x95\x10\0\0\0\0\0\0\0}\x94\x8c\x06weight\x94K\0s.",
    "gzip": lambda: gzip.compress(WHOLE),
    "zip, as torch.save writes it": zipped,
    "GGUF": lambda: b"GGUF\x03\0\0\0" + bytes(64),
    "JSON alone": lambda: WHOLE[8 : 8 + HEADER],
}

INCOMPLETE: dict[str, Callable[[], bytes]] = {
    "nothing yet": lambda: b"",
    "4 bytes": lambda: WHOLE[:4],
    "7 bytes": lambda: WHOLE[:7],
    "a header length alone": lambda: WHOLE[:8],
    "half a header": lambda: WHOLE[: 8 + HEADER // 2],
    "a header but for its last byte": lambda: WHOLE[: 7 + HEADER],
    "a header alone": lambda: WHOLE[: 8 + HEADER],
    "half the data": lambda: WHOLE[: (8 + HEADER + len(WHOLE)) // 2],
    "all but the last byte": lambda: WHOLE[:-1],
    "a git-lfs pointer": lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n",
    "a terabyte to come": lambda: beside(small('"a"', "I8", "[1099511627776]", f"[760,{760 + 2**40}]")),
}

PLACES: list[Recipe] = [
    Recipe("a pipe", "refused", special(os.mkfifo)),
    Recipe("a folder for a file", "refused", special(os.mkdir)),
    Recipe("a socket", "refused", special(make_socket)),
    Recipe("a device", "refused", special(lambda path: path.symlink_to("/dev/zero"))),
    Recipe("a link to itself", "incomplete", special(lambda path: path.symlink_to(path.name))),
    Recipe("a link to nothing", "incomplete", special(lambda path: path.symlink_to("nothing"))),
    Recipe("a folder with nothing in it", "incomplete", lambda place: place.mkdir()),
    Recipe("a pickle under its own name", "refused",
           special(lambda path: path.with_name("pytorch_model.bin").write_bytes(b"\x80\x02."))),
    Recipe("a header of 69 MB, as a million tensors have", "refused",
           with_a_hole(lambda: file(b"{", length=69_000_000), 69_000_000)),
    Recipe("all holes", "refused", with_a_hole(lambda: b"", 2**40)),
    Recipe("holes for data", "admitted", with_a_hole(lambda: WHOLE[: 8 + HEADER], len(WHOLE) - HEADER - 8)),
    Recipe("a terabyte of holes for a buffer", "refused",
           with_a_hole(lambda: beside(small('"a"', "I8", "[1,1099511627776]", f"[760,{760 + 2**40}]")), 2**40)),
]  # fmt: skip


def _from(table: dict[str, Callable[[], bytes]], expected: Expected) -> list[Recipe]:
    return [Recipe(name, expected, one_file(content)) for name, content in table.items()]


CORPUS: list[Recipe] = [
    *_from(ADMITTED, "admitted"),
    *_from(REFUSED, "refused"),
    *_from(INCOMPLETE, "incomplete"),
    *PLACES,
    *[Recipe(f"adapter: {name}", expected, make) for name, (expected, make) in ADAPTERS.items()],
    *[Recipe(f"index: {name}", expected, make) for name, (expected, make) in INDEXES.items()],
]
