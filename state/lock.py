"""The lock of a state directory: one process writes, and a second one is told who it is."""

import errno
import fcntl
import json
import os
import stat
import time
from pathlib import Path
from typing import Any

from .clock import utc_now
from .errors import Busy, Misconfigured, NotPermitted

FLAGS = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK  # whoever owns the folder may have put anything there


class Lock:
    """An exclusive flock; the kernel drops it with the process, however that ends."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd = -1

    def take(self, doing: str, socket: str | None = None) -> None:
        """Take the lock and write who holds it, and where its control socket is. Raises Busy naming the holder."""
        fd = _opened(self._path)
        if not _locked(fd):
            os.close(fd)
            holder = holder_of(self._path) or {"pid": "?", "doing": "?", "since": "?"}
            raise Busy(
                f"{self._path.parent} is in use: {holder['doing']} (process {holder['pid']}, since {holder['since']})",
                "ask that one, or stop it first",
            ) from None
        self._fd = fd
        os.fchmod(fd, 0o644)  # it tells the socket's group where the socket is
        self.describe(doing, socket)

    def describe(self, doing: str, socket: str | None) -> None:
        """Write who holds the lock, for those who find it taken."""
        text = json.dumps({"pid": os.getpid(), "doing": doing, "since": utc_now(), "socket": socket})
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, text.encode(), 0)

    def release(self) -> None:
        """Give the lock back."""
        if self._fd >= 0:
            os.ftruncate(self._fd, 0)
            os.close(self._fd)
            self._fd = -1


def _opened(path: Path) -> int:
    """Open the lock's file. Raises Misconfigured for what is another's file: root locks states of others, and writes there."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | FLAGS, 0o644)
    except PermissionError:
        raise NotPermitted(f"this user may not write {path.parent}", "run as the state's owner") from None
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise
        raise _no_lock(path) from None
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
        os.close(fd)
        raise _no_lock(path)
    return fd


def _no_lock(path: Path) -> Misconfigured:
    return Misconfigured(f"{path} is a link, or no file of the daemon's", "see who did, and remove it")


def _locked(fd: int) -> bool:
    """Try for half a second: somebody who only asks who holds the lock holds it for a moment too."""
    for wait in (0.0, 0.1, 0.2, 0.2):
        time.sleep(wait)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue
        return True
    return False


def holder_of(path: Path) -> dict[str, Any] | None:
    """Return what the holder wrote ({pid, doing, since, socket}), or None if nobody holds the lock."""
    try:
        fd = os.open(path, os.O_RDONLY | FLAGS)
    except OSError:
        return None
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return None
        except BlockingIOError:
            pass
        text = os.pread(fd, 4096, 0)
        return dict(json.loads(text)) if text else None
    except ValueError:
        return None
    finally:
        os.close(fd)
