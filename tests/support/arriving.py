"""How checkpoints arrive by plain system calls: copies, renames and links, with stalls at any moment."""

from __future__ import annotations

import os
import random
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

BLOCKS = 6  # in which a file is copied
READ_BY_ALL = 0o644


@dataclass
class Arrival:
    """One checkpoint on its way into the watched folder."""

    style: str
    way: Callable[[Arrival], None]
    source: Path  # complete, in shards
    place: Path  # where it goes
    chance: random.Random
    stall_up_to: float  # seconds
    stall_once: float = 0.0  # seconds: one stall that is surely so long
    begins: float = field(default=0.0)  # wall-clock seconds
    completed: float = field(default=0.0)

    @property
    def aside(self) -> Path:
        """A folder beside the source, on the watched folder's file system."""
        return self.source.with_name(f"{self.source.name}-aside")

    def stall(self) -> None:
        """Do nothing for a while, or not even that."""
        if self.stall_once:
            time.sleep(self.stall_once)
            self.stall_once = 0.0
        elif self.chance.random() < 0.4:
            time.sleep(self.chance.uniform(0, self.stall_up_to))

    def files(self) -> list[Path]:
        """Return the source's files, in any order."""
        paths = sorted(self.source.iterdir())
        self.chance.shuffle(paths)
        return paths

    def arrive(self) -> None:
        """Come, and note when all was there."""
        self.begins = time.time()
        self.way(self)
        self.completed = time.time()


def copy(arrival: Arrival, source: Path, target: Path, flags: int = os.O_TRUNC) -> None:
    """Copy a file block by block, in place."""
    data = source.read_bytes()
    fd = os.open(target, os.O_CREAT | os.O_WRONLY | flags, READ_BY_ALL)
    try:
        step = len(data) // BLOCKS + 1
        for start in range(0, len(data), step):
            os.pwrite(fd, data[start : start + step], start)
            arrival.stall()
    finally:
        os.close(fd)


def cp(arrival: Arrival) -> None:
    """`cp -r`: one file after the other, each in place."""
    arrival.place.mkdir()
    for path in sorted(arrival.source.iterdir()):
        copy(arrival, path, arrival.place / path.name)


def move(arrival: Arrival) -> None:
    """`mv` of a folder from the same file system."""
    shutil.copytree(arrival.source, arrival.aside)
    arrival.stall()
    arrival.aside.rename(arrival.place)


def hard_links(arrival: Arrival) -> None:
    """`cp -rl`: each file is there whole, one after the other."""
    arrival.place.mkdir()
    for path in arrival.files():
        os.link(path, arrival.place / path.name)
        arrival.stall()


def shards_before_index(arrival: Arrival) -> None:
    """Each shard is renamed in when it is whole, and the index comes last."""
    arrival.place.mkdir()
    for path in sorted(arrival.files(), key=lambda path: path.name.endswith("index.json")):
        copy(arrival, path, arrival.place / f".{path.name}.Xy12zA")
        (arrival.place / f".{path.name}.Xy12zA").rename(arrival.place / path.name)


def preallocated(arrival: Arrival) -> None:
    """The whole file is allocated, then filled: its size is right from the start."""
    arrival.place.mkdir()
    for path in arrival.files():
        target = arrival.place / path.name
        fd = os.open(target, os.O_CREAT | os.O_WRONLY, READ_BY_ALL)
        try:
            os.posix_fallocate(fd, 0, path.stat().st_size)
        finally:
            os.close(fd)
        copy(arrival, path, target, flags=0)


def replaced(arrival: Arrival) -> None:
    """One complete checkpoint, and about when it is folded another one in its stead, file by file."""
    shutil.copytree(arrival.source.with_name(f"{arrival.source.name}-first"), arrival.aside)
    arrival.aside.rename(arrival.place)
    time.sleep(max(0.0, arrival.stall_once + arrival.chance.uniform(-0.3, 0.3)))
    arrival.stall_once = 0.0
    shutil.copytree(arrival.source, arrival.aside)
    os.rename(arrival.place, f"{arrival.aside}-old")
    os.rename(arrival.aside, arrival.place)
