"""Who is at the control socket, whether they may come in, and the log line about those who are refused."""

import ctypes
import logging
import os
import socket
import struct
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from functools import cache

log = logging.getLogger(__name__)

SO_PEERGROUPS = 59  # Linux 4.13; Python has no name for it, and reads no more than 256 groups
MOST_GROUPS = 65536  # NGROUPS_MAX
MOST, MOST_OF_ONE = 96, 32  # connections open at once: of all users, and of one user
LINES, WINDOW = 60, 60.0  # lines about one user in so many seconds


@dataclass(frozen=True)
class Peer:
    """The process at the other end, as the kernel knew it when it connected."""

    pid: int
    uid: int
    groups: frozenset[int] = field(repr=False)

    def __str__(self) -> str:
        return f"uid {self.uid} (process {self.pid})"

    def may_ask(self, group: int) -> bool:
        """Whether it is root, the daemon's own user, or in the socket's group."""
        return self.uid in (0, os.geteuid()) or group in self.groups


def peer_of(connection: socket.socket) -> Peer:
    """Return who connected. Raises OSError if the kernel does not say."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid, uid, gid = struct.unpack("iII", credentials)
    return Peer(pid, uid, frozenset({gid, *_groups_of(connection)}))


def _groups_of(connection: socket.socket) -> list[int]:
    groups = (ctypes.c_uint32 * MOST_GROUPS)()
    size = ctypes.c_uint32(ctypes.sizeof(groups))
    answer = _libc().getsockopt(
        connection.fileno(), socket.SOL_SOCKET, SO_PEERGROUPS, ctypes.byref(groups), ctypes.byref(size)
    )
    if answer != 0:
        raise OSError(ctypes.get_errno(), "the kernel does not name the peer's groups")
    return groups[: size.value // ctypes.sizeof(ctypes.c_uint32)]


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


class Guests:
    """The connections that are open, and whose they are."""

    def __init__(self) -> None:
        self._inside: dict[socket.socket, int] = {}

    def enter(self, connection: socket.socket, peer: Peer) -> bool:
        """Let a connection in, unless there are too many; root and the daemon's own user are kept out by nobody else."""
        others = list(self._inside.values())
        full = len(others) >= MOST and peer.uid not in (0, os.geteuid())
        if full or others.count(peer.uid) >= MOST_OF_ONE:
            return False
        self._inside[connection] = peer.uid
        return True

    def leave(self, connection: socket.socket) -> None:
        """It is closed, whether it was let in or not."""
        self._inside.pop(connection, None)


class Audit:
    """Writes down who was refused and why: a line each, until one user fills the log."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._since = time.monotonic()
        self._refused: Counter[int] = Counter()

    def refused(self, peer: Peer, why: object) -> None:
        """Write a line; those that were left out are counted in the next minute."""
        with self._lock:
            if time.monotonic() - self._since > WINDOW:
                self._count_left_out()
            self._refused[peer.uid] += 1
            told = self._refused[peer.uid] <= LINES
        if told:
            log.warning("refused a request of %s: %s", peer, why)

    def _count_left_out(self) -> None:
        for uid, times in self._refused.items():
            if times > LINES:
                log.warning("refused %d more requests of uid %d", times - LINES, uid)
        self._refused.clear()
        self._since = time.monotonic()
