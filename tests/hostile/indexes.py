"""Hostile and broken indexes of sharded checkpoints, each with the verdict that the whole folder must get."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from hostile.making import BASE, MIB, end, entries, file

INDEX = "model.safetensors.index.json"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
DEALT = {name: SHARDS[k % 2] for k, name in enumerate(BASE)}
Make = Callable[[Path], None]


def shard(folder: Path, name: str, *weights: str) -> None:
    """Write one shard that holds these weights."""
    header = entries({weight: BASE[weight] for weight in weights})
    (folder / name).write_bytes(file(header, end(header)))


def shards(folder: Path) -> None:
    """Write both shards of a fine-tune."""
    folder.mkdir()
    for name in SHARDS:
        shard(folder, name, *(weight for weight, at in DEALT.items() if at == name))


def index(content: Callable[[], bytes | str]) -> Make:
    """Return how a folder with both shards and this index is made."""

    def make(folder: Path) -> None:
        shards(folder)
        text = content()
        (folder / INDEX).write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))

    return make


def mapped(**changes: Any) -> Make:
    """Return how a folder is made whose index says something else of some weights."""
    return index(lambda: json.dumps({"weight_map": DEALT | {k.replace("__", "."): v for k, v in changes.items()}}))


def leading(to: object) -> Make:
    """Return how a folder is made whose index leads one weight elsewhere."""
    return mapped(layer__matrix__bias=to)


def without(name: str) -> Make:
    """Return how a folder is made in which one file is missing."""

    def make(folder: Path) -> None:
        GOOD(folder)
        (folder / name).unlink()

    return make


def with_(create: Callable[[Path], object], name: str = INDEX) -> Make:
    """Return how a folder is made in which something else lies in a file's place."""

    def make(folder: Path) -> None:
        without(name)(folder)
        create(folder / name)

    return make


def twice(folder: Path) -> None:
    """Let the second shard hold a weight of the first one too."""
    GOOD(folder)
    shard(folder, SHARDS[1], *(weight for weight, at in DEALT.items() if at == SHARDS[1]), "embed_tokens.weight")


GOOD = index(lambda: json.dumps({"metadata": {"total_size": 760.0}, "weight_map": DEALT}))
MAP = json.dumps(DEALT)

INDEXES: dict[str, tuple[Literal["admitted", "refused", "incomplete"], Make]] = {
    "whole": ("admitted", GOOD),
    "more beside the map": ("admitted", index(lambda: f'{{"a":[{{"}}":"]"}}],"weight_map":{MAP},"b":-1e9}}')),
    "a shard in two cases": ("incomplete", leading(SHARDS[0].upper().replace(".SAFETENSORS", ".safetensors"))),
    "a shard that is missing": ("incomplete", without(SHARDS[1])),
    "a shard that is a link to nothing": ("incomplete", with_(lambda path: path.symlink_to("nothing"), SHARDS[1])),
    "a shard that is a pipe": ("refused", with_(os.mkfifo, SHARDS[1])),
    "a shard over again": ("refused", twice),
    "cut in the middle": ("incomplete", index(lambda: f'{{"weight_map":{MAP}'[:-9])),
    "nothing yet": ("incomplete", index(lambda: "")),
    "all zeros": ("incomplete", index(lambda: bytes(4096))),
    "a pipe": ("refused", with_(os.mkfifo)),
    "a folder": ("refused", with_(os.mkdir)),
    "endless": ("refused", with_(lambda path: path.symlink_to("/dev/zero"))),
    "up and away": ("refused", leading("../base/model.safetensors")),
    "an absolute path": ("refused", leading("/etc/passwd.safetensors")),
    "with backslashes": ("refused", leading("..\\base\\model.safetensors")),
    "a folder's name": ("refused", leading("..")),
    "NUL in a name": ("refused", leading("a\0b.safetensors")),
    "ESC in a name": ("refused", leading("a\x1b[31m.safetensors")),
    "a hidden name": ("refused", leading(".a.safetensors")),
    "a name of 300 bytes": ("refused", leading("a" * 288 + ".safetensors")),
    "a name of 5 MB": ("refused", leading("a" * 5_000_000 + ".safetensors")),
    "a pickle's name": ("refused", leading("pytorch_model.bin")),
    "half a surrogate pair in a name": ("refused", leading("\ud800.safetensors")),
    "a number for a name": ("refused", leading(7)),
    "null for a name": ("refused", leading(None)),
    "a list for a name": ("refused", leading([SHARDS[0]])),
    "a weight that is not there": ("refused", mapped(ghost=SHARDS[0])),
    "a weight of the other shard": ("refused", leading(SHARDS[1] if DEALT["layer.matrix.bias"] == SHARDS[0] else SHARDS[0])),
    "a weight twice": ("refused", index(lambda: f'{{"weight_map":{MAP[:-1]},"position_ids":"{SHARDS[0]}"}}}}')),
    "two maps": ("refused", index(lambda: f'{{"weight_map":{MAP},"weight_map":{MAP}}}')),
    "an empty map": ("refused", index(lambda: '{"weight_map":{}}')),
    "a map that is a list": ("refused", index(lambda: '{"weight_map":[]}')),
    "no map": ("refused", index(lambda: "{}")),
    "more after the object": ("refused", index(lambda: f'{{"weight_map":{MAP}}}{{}}')),
    "no UTF-8": ("refused", index(lambda: f'{{"weight_map":{MAP}}}'.replace("embed", "\xff").encode("latin-1"))),
    "nested lists, a million deep": ("refused", index(lambda: f'{{"weight_map":{"[" * MIB}{"]" * MIB}}}')),
    "five million empty lists": ("refused", index(lambda: '{"weight_map":[' + "[]," * 5_000_000 + "0]}")),
    "five million empty lists beside": ("refused", index(lambda: f'{{"a":[{"[]," * 5_000_000}0],"weight_map":{MAP}}}')),
    "a million weights": ("refused", index(lambda: '{"weight_map":{' + ",".join(f'"{k}":"b"' for k in range(10**6)) + "}}")),
    "17 MiB": ("refused", index(lambda: f'{{"weight_map":{MAP}}}'.ljust(17 * MIB))),
}  # fmt: skip
