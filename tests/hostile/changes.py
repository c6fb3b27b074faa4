"""What may happen to a checkpoint's files while they are read: each change leaves the folder whole, broken, or gone."""

import ctypes
import mmap
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

PUNCH = 0x01 | 0x02  # FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE, linux/falloc.h
PIECE = 2**16  # bytes
MODEL = "model.safetensors"
SHARD = "model-00002-of-00002.safetensors"


def weights(place: Path) -> Path:
    """Return the file that is changed: the only one, or the second shard."""
    return place / SHARD if (place / SHARD).exists() else place / MODEL


def times_set_back(change: Callable[[Path, Path, random.Random], None]) -> Callable[[Path, Path, random.Random], None]:
    """Return the change after which a file bears the times that it bore before."""

    def set_back(place: Path, other: Path, chance: random.Random) -> None:
        before = weights(place).stat()
        change(place, other, chance)
        os.utime(weights(place), ns=(before.st_atime_ns, before.st_mtime_ns))

    return set_back


def truncated(place: Path, other: Path, chance: random.Random) -> None:
    path = weights(place)
    os.truncate(path, chance.randrange(path.stat().st_size))


def truncated_and_restored(place: Path, other: Path, chance: random.Random) -> None:
    data = weights(place).read_bytes()
    truncated(place, other, chance)
    with weights(place).open("r+b") as file:
        file.write(data)


def grown(place: Path, other: Path, chance: random.Random) -> None:
    with weights(place).open("ab") as file:
        file.write(bytes(chance.randrange(1, PIECE)))


def overwritten(place: Path, other: Path, chance: random.Random) -> None:
    """Write the other model's bytes over this one's in the same file, at once: who pauses for long is another matter."""
    with weights(place).open("r+b", buffering=0) as file:
        file.write(weights(other).read_bytes())


def overwritten_in_one_place(place: Path, other: Path, chance: random.Random) -> None:
    path = weights(place)
    at = chance.randrange(path.stat().st_size // 2, path.stat().st_size - 8)
    with path.open("r+b", buffering=0) as file:
        file.seek(at // 4 * 4)
        file.write(b"\0\0\x80?")  # 1.0, if it lies as floats do


def overwritten_through_a_map(place: Path, other: Path, chance: random.Random) -> None:
    path = weights(place)
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        at = chance.randrange(len(memory) // 2, len(memory) - PIECE)
        memory[at : at + PIECE] = bytes(PIECE)


def punched(place: Path, other: Path, chance: random.Random) -> None:
    path = weights(place)
    size = path.stat().st_size
    begin = chance.randrange(size // 4, size - 1)
    length = chance.randrange(1, size - begin + 1)
    fallocate = ctypes.CDLL(None, use_errno=True).fallocate
    fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    with path.open("r+b") as file:
        if fallocate(file.fileno(), PUNCH, begin, length) != 0:
            raise OSError(ctypes.get_errno(), "fallocate")


def header_broken(place: Path, other: Path, chance: random.Random) -> None:
    with weights(place).open("r+b", buffering=0) as file:
        file.seek(8)
        file.write(b"[")


def replaced(place: Path, other: Path, chance: random.Random) -> None:
    shutil.copy(weights(other), place / ".new")
    (place / ".new").rename(weights(place))


def replaced_by_its_copy(place: Path, other: Path, chance: random.Random) -> None:
    replaced(place, place, chance)


def deleted(place: Path, other: Path, chance: random.Random) -> None:
    weights(place).unlink()


def folder_deleted(place: Path, other: Path, chance: random.Random) -> None:
    shutil.rmtree(place)


def folder_replaced(place: Path, other: Path, chance: random.Random) -> None:
    place.rename(other.with_name(f"old-{place.name}"))
    other.rename(place)


def locked(place: Path, other: Path, chance: random.Random) -> None:
    weights(place).chmod(0)


CHANGES: dict[str, Callable[[Path, Path, random.Random], None]] = {
    "truncated": truncated,
    "grown": grown,
    "overwritten in place": overwritten,
    "overwritten in place, times set back": times_set_back(overwritten),
    "overwritten in one place, times set back": times_set_back(overwritten_in_one_place),
    "deleted": deleted,
    "replaced by rename": replaced,
    "chmod 000": locked,
    "a hole punched, times set back": times_set_back(punched),
    "a shard swapped": replaced,
    "overwritten through a map, times set back": times_set_back(overwritten_through_a_map),
    "folder replaced": folder_replaced,
    "truncated and restored, times set back": times_set_back(truncated_and_restored),
    "replaced by its copy, times set back": times_set_back(replaced_by_its_copy),
    "header broken, times set back": times_set_back(header_broken),
    "folder deleted": folder_deleted,
}
