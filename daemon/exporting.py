"""Exporting: a version's published model, or its task vector as one adapter, put where the caller wants it: whole or not at all.

It is done in the caller's process, with the caller's rights: who may read the published models need not own the state.
"""

import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..state.digests import Digest
from ..state.errors import Busy, Damaged, NotPermitted, Refused, Unavailable, Usage
from ..state.headers import open_regular
from ..state.history import History
from ..state.records import Version
from ..state.store import Store, sync_folder
from ..state.wording import size
from .asking import open_history, store_to_look_at
from .naming import find_version
from .progress import Progress
from .settings import Settings

PIECE = 1 << 22  # bytes


@dataclass(frozen=True)
class File:
    """One file to be exported."""

    name: str  # relative to the model's folder
    size: int  # bytes
    blake3: str | None  # as the manifest says, where that may be read


def export(settings: Settings, text: str, target: Path, progress: Progress) -> dict[str, Any]:
    """Copy a version's published model to `target`; its files are compared with the manifest where that may be read.

    Raises Usage for a wrong version or target, Damaged for a file that is not as it was written; then nothing is left.
    """
    store = store_to_look_at(settings)
    place = place_of(target, settings)
    number, files = _published(text, store)
    check_room(place, sum(file.size for file in files))
    progress.begin("exporting", len(files), sum(file.size for file in files))
    with put_together(place) as aside:
        for file in files:
            read(store.model(number) / file.name, file, progress, copy=aside / file.name)
            progress.next_weight()
    progress.end()
    return {
        "version": number,
        "folder": str(place),
        "files": len(files),
        "bytes": sum(file.size for file in files),
        "compared": all(file.blake3 for file in files),
    }


# -------------------------------------------------------------------------------------------------- what is exported


def kept_version(history: History, text: str, *, slots_do: bool = False) -> Version:
    """Return the version that is named, if its published model is kept, or its slots where those do."""
    version = find_version(history, text)
    if not version.model_kept and not (slots_do and version.slots_kept and not version.read_at_once):
        kept = ", ".join(str(other) for other in history.with_files())
        raise Usage(f"the files of {version} were dropped by retention", f"kept are: {kept}")
    return version


def _published(text: str, store: Store) -> tuple[int, list[File]]:
    """Return a version's number and the files of its published model; by what lies there for those who may not ask."""
    try:
        with open_history(store) as history:
            number = kept_version(history, text).number
    except NotPermitted:
        number = _by_the_folders(text, store)
        return number, list(_lying_in(store.model(number)))
    return number, [File(**file) for file in store.manifest(number)["model"]]


def _by_the_folders(text: str, store: Store) -> int:
    """Return the number of a published version, for those who may not read the history."""
    there = sorted(int(path.name) for path in store.models.iterdir() if path.name.isdecimal())
    number = store.pointed() if text == "head" else int(text.removeprefix("v")) if _is_number(text) else None
    if number is None and text.startswith("head~"):
        raise NotPermitted(f"{text} is known to the state's owner alone", "give the version's number")
    if number not in there:
        raise Usage(f"there is no published version {text!r}", f"there are: {', '.join(f'v{n}' for n in there)}")
    return number


def _is_number(text: str) -> bool:
    return re.fullmatch(r"v?\d{1,9}", text) is not None


def _lying_in(folder: Path) -> Iterator[File]:
    for at, folders, names in os.walk(folder):
        folders.sort()
        for path in (Path(at) / name for name in sorted(names)):
            yield File(str(path.relative_to(folder)), path.stat().st_size, None)


# --------------------------------------------------------------------------------------------------------- where to


def place_of(target: Path, settings: Settings) -> Path:
    """Return where to export to. Raises Usage unless it is a new or an empty folder, outside the state and the watch."""
    place = target.expanduser().resolve()
    if not place.parent.is_dir():
        raise Usage(f"there is no folder {place.parent}", "make it first")
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
        raise Usage(f"{place} is there already", "give a new folder, or an empty one")
    if place.is_relative_to(settings.state.resolve()) or (
        settings.watch and place.is_relative_to(settings.watch.resolve())
    ):
        raise Usage(f"{place} is mergd's own, or watched", "a merged model is not folded into itself")
    return place


def check_room(place: Path, nbytes: int) -> None:
    """Raise Unavailable if the disk has not so much room."""
    free = shutil.disk_usage(place.parent).free
    if free < nbytes:
        raise Unavailable(f"{size(nbytes)} are needed at {place.parent}, {size(free)} are free", "make room")


@contextmanager
def put_together(place: Path) -> Iterator[Path]:
    """Give a hidden folder beside a place; at the good end it is synced and renamed there, else nothing is left of it."""
    try:
        aside = Path(tempfile.mkdtemp(prefix=f".{place.name}-", dir=place.parent))
    except PermissionError:
        raise NotPermitted(f"this user may not write {place.parent}", "give a folder of your own") from None
    try:
        yield aside
        aside.chmod(0o777 & ~_umask())
        for folder, _, _ in os.walk(aside):
            sync_folder(Path(folder))
        aside.rename(place)
        sync_folder(place.parent)
    except BaseException as error:
        shutil.rmtree(aside, ignore_errors=True)
        if isinstance(error, OSError) and error.errno in _WHY:
            raise _WHY[error.errno](f"{place}: {error.strerror}", "nothing was left there") from error
        raise


_WHY = {
    errno.ENOSPC: Unavailable,
    errno.EDQUOT: Unavailable,
    errno.ENOTEMPTY: Usage,  # somebody wrote there meanwhile
    errno.EEXIST: Usage,
    errno.EBUSY: Usage,  # a file system is mounted there
}


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def check(folder: Path, files: Iterable[File], progress: Progress) -> None:
    """Read files and compare them with what the manifest says. Raises Damaged."""
    listed = list(files)
    progress.begin("comparing", len(listed), sum(file.size for file in listed))
    for file in listed:
        read(folder / file.name, file, progress)
        progress.next_weight()


def read(path: Path, file: File, progress: Progress, copy: Path | None = None) -> None:
    """Read a file, and write a synced copy if one is asked for. Raises Damaged if it is not what it should be."""
    digest, done, written = Digest(), 0, None
    fd = _opened(path, file)
    try:
        if copy is not None:
            copy.parent.mkdir(parents=True, exist_ok=True)
            written = copy.open("xb", buffering=0)
        while piece := os.read(fd, PIECE):
            digest.update(piece)
            done += len(piece) if written is None else _write(written, piece)
            progress.advance(len(piece))
        if written is not None:
            os.fsync(written.fileno())
    finally:
        os.close(fd)
        if written is not None:
            written.close()
    if done != file.size or file.blake3 not in (None, digest.hexdigest()):
        raise _damaged(path)


def _opened(path: Path, file: File) -> int:
    """Open a file of ours. Raises Busy if its whole folder is gone: retention dropped it meanwhile."""
    try:
        return open_regular(path)
    except (Busy, Refused):
        if file.blake3 is None or not path.parent.exists():
            raise
        raise _damaged(path) from None


def _damaged(path: Path) -> Damaged:
    return Damaged(f"{path} is not as it was written", "nothing was exported; see: mergd verify")


def _write(file: Any, piece: bytes) -> int:
    done = 0
    while done < len(piece):
        done += file.write(memoryview(piece)[done:])
    return done
