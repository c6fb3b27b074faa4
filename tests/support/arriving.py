"""How checkpoints arrive: real tools and system calls, each with stalls at any moment. Where a tool is missing, its calls."""

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from safetensors.torch import load_file, save_file

BLOCKS = 6  # in which a file is copied
READ_BY_ALL = 0o644
GIT = {"GIT_CONFIG_NOSYSTEM": "1", "GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@b", "GIT_COMMITTER_NAME": "a",
       "GIT_COMMITTER_EMAIL": "a@b"}  # fmt: skip


@dataclass
class Arrival:
    """One checkpoint on its way into the watched folder."""

    style: str
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
        STYLES[self.style](self)
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


# ------------------------------------------------------------------------------------------------- copies and renames


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


def zeros_first(arrival: Arrival) -> None:
    """Zeros are written first, then the content over them: there is no hole, and no size that grows."""
    arrival.place.mkdir(exist_ok=True)
    for path in arrival.files():
        target = arrival.place / path.name
        header = path.read_bytes()[:4096]
        target.write_bytes(header + bytes(path.stat().st_size - len(header)))
        target.chmod(READ_BY_ALL)
    for path in arrival.files():
        copy(arrival, path, arrival.place / path.name, flags=0)


def replaced(arrival: Arrival) -> None:
    """One complete checkpoint, and about when it is folded another one in its stead, file by file."""
    shutil.copytree(arrival.source.with_name(f"{arrival.source.name}-first"), arrival.aside)
    arrival.aside.rename(arrival.place)
    time.sleep(max(0.0, arrival.stall_once + arrival.chance.uniform(-0.3, 0.3)))
    arrival.stall_once = 0.0
    shutil.copytree(arrival.source, arrival.aside)
    os.rename(arrival.place, f"{arrival.aside}-old")
    os.rename(arrival.aside, arrival.place)


# --------------------------------------------------------------------------------------------------------- real tools


def rsync(*options: str) -> Callable[[Arrival], None]:
    """Return `rsync -a OPTIONS`, which is stopped and goes on at any moment."""

    def arrive(arrival: Arrival) -> None:
        if shutil.which("rsync") is None:
            like_rsync(arrival, options)
            return
        words = ["rsync", "-a", "--no-compress", "--whole-file", f"--bwlimit={arrival.chance.choice((1000, 3000))}"]
        run_with_stalls(arrival, [*words, *options, f"{arrival.source}/", f"{arrival.place}/"])

    return arrive


def like_rsync(arrival: Arrival, options: tuple[str, ...]) -> None:
    """Do as rsync does: in place; or aside and rename, all at the end if updates are delayed."""
    arrival.place.mkdir()
    delayed = arrival.place / ".~tmp~"
    for path in sorted(arrival.source.iterdir()):
        target = arrival.place / path.name
        if "--inplace" in options:
            copy(arrival, path, target)
            continue
        aside = arrival.place / f".{path.name}.Ab3dEf"
        copy(arrival, path, aside)
        if "--delay-updates" in options:
            delayed.mkdir(exist_ok=True)
            target = delayed / path.name
        aside.rename(target)
    for path in sorted(delayed.iterdir()) if delayed.exists() else ():
        path.rename(arrival.place / path.name)
    if delayed.exists():
        delayed.rmdir()


def run_with_stalls(arrival: Arrival, words: list[str]) -> None:
    """Run a command, stop all of its processes now and then, and let them go on."""
    running = subprocess.Popen(words, start_new_session=True)
    while running.poll() is None:
        time.sleep(arrival.chance.uniform(0.05, 0.5))
        if running.poll() is None:
            os.killpg(running.pid, signal.SIGSTOP)
            arrival.stall()
            os.killpg(running.pid, signal.SIGCONT)
    assert running.returncode == 0, words


def git_lfs(arrival: Arrival) -> None:
    """A clone that brings pointers, and later their content."""
    if shutil.which("git") is None or shutil.which("git-lfs") is None:
        like_git_lfs(arrival)
        return
    origin = f"{arrival.aside}-origin"
    shutil.copytree(arrival.source, origin)
    for words in (["init", "-q"], ["lfs", "install", "--local"], ["lfs", "track", "*.safetensors"], ["add", "-A"],
                  ["commit", "-qm", "a model"]):  # fmt: skip
        git(words, origin)
    git(["clone", "-q", f"file://{origin}", str(arrival.place)], origin, GIT_LFS_SKIP_SMUDGE="1")
    git(["lfs", "install", "--local"], str(arrival.place))
    arrival.stall()
    git(["lfs", "pull"], str(arrival.place))


def git(words: list[str], at: str, **environment: str) -> None:
    """Run git, whatever the user's own configuration."""
    settings = os.environ | GIT | {"HOME": str(Path(at).parent)} | environment
    subprocess.run(["git", *words], cwd=at, env=settings, check=True, capture_output=True)


def like_git_lfs(arrival: Arrival) -> None:
    arrival.place.mkdir()
    for path in arrival.files():
        data = path.read_bytes()
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256(data)}\nsize {len(data)}\n"
        (arrival.place / path.name).write_bytes(pointer.encode() if path.suffix == ".safetensors" else data)
    arrival.stall()
    for path in arrival.files():
        (arrival.place / path.name).unlink()
        copy(arrival, path, arrival.place / path.name)


# ------------------------------------------------------------------------------------------------- what libraries do


def save_pretrained(arrival: Arrival) -> None:
    """Each shard is saved by safetensors, which keeps it to its owner; at the end all may be read by all."""
    arrival.place.mkdir()
    for path in sorted(arrival.source.iterdir()):
        if path.suffix == ".safetensors":
            save_file(load_file(path), arrival.place / path.name, {"format": "pt"})
        else:
            copy(arrival, path, arrival.place / path.name)
        arrival.stall()
    for path in arrival.files():
        (arrival.place / path.name).chmod(READ_BY_ALL)


def hub_download(arrival: Arrival) -> None:
    """`hf download --local-dir`: each file grows aside, with its digest noted before, and is renamed in, in any order."""
    aside = arrival.place / ".cache" / "huggingface" / "download"
    trees = arrival.place / ".cache" / "huggingface" / "trees"
    aside.mkdir(parents=True)
    trees.mkdir()
    entries = {path.name: hub_entry(path) for path in arrival.source.iterdir()}
    (trees / f"{'a' * 40}.json").write_text(json.dumps({"format_version": 1, "files": entries}))
    for path in arrival.files():
        part = aside / f"{path.name}.{arrival.chance.randbytes(4).hex()}.incomplete"
        copy(arrival, path, part)
        part.rename(arrival.place / path.name)
        (aside / f"{path.name}.metadata").write_text("a\n")
        arrival.stall()


def hub_entry(path: Path) -> dict[str, object]:
    data = path.read_bytes()
    entry: dict[str, object] = {"size": len(data), "blob_id": "0" * 40}
    return entry | ({"lfs_sha256": sha256(data), "lfs_size": len(data)} if path.suffix == ".safetensors" else {})


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


# ----------------------------------------------------------------------------- what no rule can know, and what helps


def with_manifest(arrival: Arrival) -> None:
    """The digests come first; then what no rule could know to be incomplete."""
    arrival.place.mkdir()
    sums = [f"{sha256(path.read_bytes())}  {path.name}\n" for path in sorted(arrival.source.iterdir())]
    (arrival.place / "SHA256SUMS").write_text("".join(sums))
    zeros_first(arrival)


def with_marker(arrival: Arrival) -> None:
    """What no rule could know to be incomplete; at the end a marker says that it is complete."""
    zeros_first(arrival)
    last = max(path.stat().st_ctime_ns for path in arrival.place.iterdir())
    marker = arrival.place / "READY"
    marker.touch()
    while marker.stat().st_ctime_ns <= last:
        marker.touch()


STYLES: Mapping[str, Callable[[Arrival], None]] = {
    "cp -r": cp,
    "rsync": rsync(),
    "rsync --inplace": rsync("--inplace"),
    "rsync --preallocate": rsync("--preallocate"),
    "rsync --delay-updates": rsync("--delay-updates"),
    "mv": move,
    "hard links": hard_links,
    "git-lfs": git_lfs,
    "save_pretrained": save_pretrained,
    "shards before index": shards_before_index,
    "hf download": hub_download,
    "preallocated": preallocated,
    "a copy that stalls": cp,
    "replaced while folded": replaced,
    "zeros first": zeros_first,
    "zeros first, with manifest": with_manifest,
    "zeros first, with marker": with_marker,
}
UNKNOWABLE = ("zeros first",)  # to another user who stalls for longer than quiet_unsure
MARKED = ("zeros first, with marker",)  # safe where the setting marked_only asks for markers
KNOWN = tuple(style for style in STYLES if style not in (*UNKNOWABLE, *MARKED))
