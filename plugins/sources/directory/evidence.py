"""A closer look at one place: does somebody still write there, and does somebody say that all is there?

Each weight file is opened for a moment; none is read, and nobody is kept waiting.
"""

import errno
import fcntl
import os
import signal
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ....state.errors import Unavailable
from ....state.records import Sighting
from ..interface import Evidence
from . import manifests
from .network import on_network
from .places import SNAPSHOTS, WEIGHTS, matches

# What a copy in progress leaves beside the files: rsync, safetensors, browsers, aria2, syncthing, the Hub's client.
IN_PROGRESS = (".*.safetensors.*", ".tmp*", ".~tmp~", "~syncthing~*", "*.tmp", "*.part", "*.partial", "*.incomplete",
               "*.aria2", "*.crdownload")  # fmt: skip
BESIDE = (".tmp", ".part", ".partial", ".incomplete", ".aria2", ".crdownload")  # after a lone file's own name
HUB_DOWNLOADS = Path(".cache", "huggingface", "download")
MARKERS = ("READY", ".mergd-ready")
MARKER = ".ready"  # after a lone file's own name
BLOCK = 4096  # bytes of which a file system may keep a few elsewhere than in the blocks that it counts


def gather(sighting: Sighting) -> Evidence:
    """Return what can be found out about a place that is not settled yet. Raises Unavailable on a disk's error."""
    place = Path(sighting.place)
    try:
        lone = not place.is_dir()
        folder = place.parent if lone else place
        unfinished = _beside(place) if lone else _in_progress(place)  # first: a folder that is closed is named itself
        weights = [stamp.name for stamp in sighting.stamps if stamp.name.endswith(WEIGHTS) and stamp.size >= 0]
        looks = {name: look for name in weights if (look := _look_at(folder / name)) is not None}
        manifest, digests = manifests.listed(folder, place.name if lone else "", weights)
        return Evidence(
            unfinished=unfinished,
            writers=tuple(name for name, look in looks.items() if look.written),
            unasked=tuple(name for name, look in looks.items() if look.written is None),
            holes=tuple(name for name, look in looks.items() if look.holes),
            network=on_network(folder),
            marker=_marker(folder, (f"{place.name}{MARKER}",), weights) if lone else _marker(folder, MARKERS),
            manifest=manifest,
            digests=digests,
        )
    except PermissionError as error:
        return Evidence(unreadable=str(error.filename or place))
    except FileNotFoundError:  # it went away; the next scan says so
        return Evidence()
    except OSError as error:
        where = error.filename or place
        raise Unavailable(f"the disk to give {where}: {error.strerror}", "it is looked at again") from None


# --------------------------------------------------------------------------------------------------------- one file


@dataclass(frozen=True)
class _Look:
    written: bool | None  # by somebody, now; None if that cannot be found out
    holes: bool


def _look_at(path: Path) -> _Look | None:
    """Look at one weight file; None if it is gone or no file. Raises PermissionError."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except PermissionError:
        raise
    except FileNotFoundError:
        return None
    except OSError:
        return _Look(None, False)
    try:
        status = os.fstat(fd)
        return _Look(_is_written(fd), _has_holes(fd, status)) if stat.S_ISREG(status.st_mode) else None
    finally:
        os.close(fd)


def _is_written(fd: int) -> bool | None:
    """Whether somebody has the file open for writing, or mapped; None where the kernel does not say.

    It does so to a file's owner and to CAP_LEASE, on local file systems. The lease is given back at once. Who opens the
    file in between is let in as soon as it is; the signal that would tell us of that is one that nobody heeds.
    """
    try:
        fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except OSError as error:
        return True if error.errno == errno.EAGAIN else None
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    return False


def _has_holes(fd: int, status: os.stat_result) -> bool:
    """Whether some range of a file was never written: it may have been allocated before a copy came to it."""
    if status.st_blocks * 512 + BLOCK < status.st_size:
        return True
    try:
        return os.lseek(fd, 0, os.SEEK_HOLE) < status.st_size
    except OSError:
        return False


# -------------------------------------------------------------------------------------------------- what lies beside


def _in_progress(folder: Path) -> str:
    """Return a name in a folder, or in the Hub client's own, that only a copy in progress leaves."""
    names = os.listdir(folder) + _incomplete(folder / HUB_DOWNLOADS)
    real = folder.resolve()
    if real.parent.name == SNAPSHOTS:
        names += _incomplete(real.parent.parent / "blobs")
    return next((name for name in sorted(names) if matches(name, IN_PROGRESS)), "")


def _incomplete(folder: Path) -> list[str]:
    return [name for name in os.listdir(folder) if name.endswith(".incomplete")] if folder.is_dir() else []


def _beside(place: Path) -> str:
    return next((f"{place.name}{end}" for end in BESIDE if os.path.lexists(f"{place}{end}")), "")


def _marker(folder: Path, markers: Iterable[str], others: Iterable[str] | None = None) -> str:
    """Return the marker that is no older than every other file's last change; a time that nobody can set back says so.

    File systems whose clock has ticks give the same time to what was written one upon another.
    """
    names = {*(os.listdir(folder) if others is None else others), *markers}
    changed = {name: time for name in names if (time := _changed(folder / name)) is not None}
    last = max((time for name, time in changed.items() if name not in markers), default=0)
    return next((name for name in markers if changed.get(name, -1) >= last), "")


def _changed(path: Path) -> int | None:
    """Return when a file was changed last, in wall-clock nanoseconds; None if it is no file."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_ctime_ns if stat.S_ISREG(status.st_mode) else None
