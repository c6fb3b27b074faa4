"""What errors of the disk and of the database mean, by who can mend them: one place knows the numbers."""

import errno
import sqlite3

from .errors import Busy, Damaged, DiskFails, DiskFull, Uncertain

FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
FAILS = frozenset({errno.EIO, errno.EROFS, errno.EUCLEAN, errno.ENXIO, errno.ENODEV, errno.ESTALE})
# SQLite says FULL only where nothing of the transaction counts. SHMSIZE: no room to open the database at all.
NO_ROOM = frozenset({sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_SHMSIZE})
IN_USE = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED})
BROKEN = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
# A commit that ended with one of these may count or not: the next start finds out, from what the disk has.
UNKNOWN = frozenset({sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN})

RESTORE = "bring a copy back from backups/, or make it again from the manifests: mergd rebuild"


def meaning(error: BaseException) -> BaseException:
    """Return an error of the disk or of the database as one of mergd's; any other one as it is."""
    if isinstance(error, sqlite3.Error):
        return _of_database(error)
    number = error.errno if isinstance(error, OSError) else None
    if number in FULL:
        return DiskFull(f"disk full: {error}")
    if number in FAILS:
        return DiskFails(f"the disk fails: {error}", "look into the kernel's log: dmesg")
    return error


def _of_database(error: sqlite3.Error) -> BaseException:
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
    kind = code & 0xFF
    if {code, kind} & NO_ROOM:
        return DiskFull(f"disk full: the history cannot be written ({error})")
    if kind in IN_USE:
        return Busy(f"another process holds the history: {error}", "try again")
    if kind in BROKEN:
        return Damaged(f"the history is broken: {error}", RESTORE)
    if kind in UNKNOWN:
        hint = "nothing was written over; when the disk is well, start mergd again: it goes on from what the disk has"
        return Uncertain(f"the history could not be read or written: {error}", hint)
    return error
