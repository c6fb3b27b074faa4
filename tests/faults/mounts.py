"""Mounting in a mount namespace of our own: what is mounted goes away with the process. For root alone."""

import ctypes
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LIBC = ctypes.CDLL(None, use_errno=True)
CLONE_NEWNS = 0x20000
MS_REC, MS_PRIVATE = 0x4000, 0x40000
NEEDED = ("/dev/fuse", "/dev/loop-control")


def can_mount(*devices: str) -> bool:
    """Whether this process may mount, and has these devices."""
    with open("/proc/self/status") as status:
        line = next(line for line in status if line.startswith("CapEff"))
    return os.geteuid() == 0 and bool(int(line.split()[1], 16) >> 21 & 1) and all(map(os.path.exists, devices))


def own_namespace() -> None:
    """Leave the mounts of the others alone from now on, and be left alone; also for processes that are started later."""
    check(LIBC.unshare(CLONE_NEWNS), "unshare")
    check(LIBC.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None), "mount --make-rprivate /")


def check(result: int, what: str) -> None:
    """Raise the error of a call into libc, if there was one."""
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def make_ext4(path: Path, size: int) -> Path:
    """Make an ext4 file system in a sparse file of so many bytes; returns the file."""
    with path.open("wb") as file:
        file.truncate(size)
    options = ["-q", "-F", "-b", "4096", "-m", "0", "-E", "lazy_itable_init=0,lazy_journal_init=0"]
    subprocess.run(["mkfs.ext4", *options, str(path)], check=True)
    return path


@contextmanager
def mounted(image: Path, at: Path) -> Iterator[None]:
    """Mount a file system that lies in a file; its folder is empty where it is new."""
    at.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "ext4", "-o", "loop", str(image), str(at)], check=True)
    try:
        if (at / "lost+found").exists():
            (at / "lost+found").rmdir()
        yield
    finally:
        subprocess.run(["umount", str(at)], check=True)


@contextmanager
def mounted_memory(at: Path, size: int) -> Iterator[None]:
    """Mount a file system of so many bytes, in memory."""
    at.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(at)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(at)], check=True)
