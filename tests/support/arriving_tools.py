"""How checkpoints arrive by real tools, and by what libraries do. Where a tool is missing, by its system calls."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from safetensors.torch import load_file, save_file
from support.arriving import READ_BY_ALL, Arrival, copy

GIT = {"GIT_CONFIG_NOSYSTEM": "1", "GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@b", "GIT_COMMITTER_NAME": "a",
       "GIT_COMMITTER_EMAIL": "a@b"}  # fmt: skip


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
