"""A disk that remembers: a file whose every write and flush is written down, in order, under a real file system.

It speaks the kernel's FUSE protocol itself (linux/fuse.h), so that it needs root and /dev/fuse, and no library: the mounted
file IS the disk, a loop device makes a block device of it, and ext4 goes on top. What the block layer calls a flush arrives
here as fsync. A disk may lose what came after the last flush, any part of it, when the power is cut: see `Recording`.
"""

import errno
import os
import random
import signal
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from faults.mounts import LIBC, check

FORGET, GETATTR, SETATTR, OPEN, READ, WRITE, STATFS, RELEASE = 2, 3, 4, 14, 15, 16, 17, 18
FSYNC, FLUSH, INIT, INTERRUPT, DESTROY, BATCH_FORGET = 20, 25, 26, 36, 38, 42
SILENT = (FORGET, INTERRUPT, BATCH_FORGET)  # nobody waits for an answer
MAX_WRITE = 1 << 20
BIG_WRITES, MAX_PAGES = 1 << 5, 1 << 22  # flags of INIT
RECORD = struct.Struct("<cQI")  # kind, offset, bytes of data that follow


class RememberingDisk:
    """The serving side: one process, one request at a time."""

    def __init__(self, image: Path, log: Path, device: int) -> None:
        self._image = os.open(image, os.O_RDWR)
        self._log = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        self._device = device

    def serve(self) -> None:
        """Answer the kernel until the file is unmounted."""
        while True:
            try:
                request = os.read(self._device, MAX_WRITE + (1 << 16))
            except OSError as error:
                if error.errno == errno.ENODEV:  # unmounted
                    return
                if error.errno in (errno.EINTR, errno.ENOENT):  # interrupted, or the request was taken back
                    continue
                raise
            _, code, unique, *_ = struct.unpack_from("<IIQQIIIHH", request)
            if code not in SILENT:
                number, answer = self._answer(code, request[40:])
                os.write(self._device, struct.pack("<IiQ", 16 + len(answer), -number, unique) + answer)

    def _answer(self, code: int, body: bytes) -> tuple[int, bytes]:
        """Return an error number and what is answered."""
        match code:
            case 26:  # INIT
                major, minor, ahead, _ = struct.unpack_from("<IIII", body)
                flags = BIG_WRITES | MAX_PAGES
                head = struct.pack("<IIIIHHIIHHI", major, min(minor, 31), ahead, flags, 16, 12, MAX_WRITE, 1, 256, 0, 0)
                return 0, head + bytes(28)
            case 3 | 4:  # GETATTR, SETATTR
                return 0, struct.pack("<QII", 3600, 0, 0) + self._attributes()
            case 14:  # OPEN
                return 0, struct.pack("<QIi", 1, 0, 0)
            case 15:  # READ
                _, offset, size = struct.unpack_from("<QQI", body)
                return 0, os.pread(self._image, size, offset)
            case 16:  # WRITE
                return 0, self._write(body)
            case 20:  # FSYNC
                os.write(self._log, RECORD.pack(b"F", 0, 0))
                return 0, b""
            case 18 | 25 | 38:  # RELEASE, FLUSH (which is a close), DESTROY
                return 0, b""
        return errno.ENOSYS, b""

    def _write(self, body: bytes) -> bytes:
        _, offset, size = struct.unpack_from("<QQI", body)
        data = body[40 : 40 + size]
        os.pwrite(self._image, data, offset)
        os.write(self._log, RECORD.pack(b"W", offset, size) + data)
        return struct.pack("<II", size, 0)

    def _attributes(self) -> bytes:
        size = os.fstat(self._image).st_size
        times = (0, 0, 0, 0, 0, 0)
        return struct.pack("<QQQQQQIIIIIIIIII", 1, size, size // 512, *times, 0o100600, 1, 0, 0, 0, 4096, 0)


@contextmanager
def remembering(image: Path, log: Path, at: Path) -> Iterator[Path]:
    """Show an image as a file at `at` whose every write and flush goes to the log; returns that file."""
    at.touch()
    device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    options = f"fd={device},rootmode=100000,user_id=0,group_id=0,max_read={MAX_WRITE}"
    check(LIBC.mount(b"disk", bytes(at), b"fuse", 0, options.encode()), "mount of FUSE")
    process = os.fork()
    if process == 0:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            RememberingDisk(image, log, device).serve()
        finally:
            os._exit(0)
    os.close(device)
    try:
        yield at
    finally:
        check(LIBC.umount2(bytes(at), 0), "umount of FUSE")
        os.waitpid(process, 0)


@dataclass(frozen=True)
class Record:
    """One write, or a flush (no data), and where it ends in the log."""

    offset: int
    data: bytes | None
    end: int


class Recording:
    """What a disk was told, in order; and the disks that a power cut may leave."""

    def __init__(self, fresh: Path, log: Path) -> None:
        self._fresh = fresh
        self.records = list(self._read(log.read_bytes()))

    def _read(self, raw: bytes) -> Iterator[Record]:
        at = 0
        while at < len(raw):
            kind, offset, size = RECORD.unpack_from(raw, at)
            start, at = at + RECORD.size, at + RECORD.size + size
            yield Record(offset, raw[start:at] if kind == b"W" else None, at)

    @property
    def flushes(self) -> int:
        """How many flushes there were."""
        return sum(record.data is None for record in self.records)

    def first_after(self, position: int) -> int:
        """Return which record is the first that ends behind a position of the log."""
        return next((i for i, record in enumerate(self.records) if record.end > position), len(self.records))

    def image(self, cut: int, chance: random.Random, path: Path) -> Path:
        """Make the disk that a power cut before record `cut` leaves: of what was not flushed, anything may be missing."""
        flushed = max((i for i in range(cut) if self.records[i].data is None), default=-1)
        path.unlink(missing_ok=True)
        os.system(f"cp --sparse=always '{self._fresh}' '{path}'")
        fd = os.open(path, os.O_WRONLY)
        try:
            for i, record in enumerate(self.records[:cut]):
                if record.data is not None and (i < flushed or chance.random() < 0.5):
                    os.pwrite(fd, record.data, record.offset)
        finally:
            os.close(fd)
        return path
