"""The files of a state directory: drafts, versions, published models, and the link to the head.

A draft is worth nothing until it is renamed in, and what is renamed in is worth nothing until the history has its row.
So a crash anywhere leaves either the old head or the new one, and folders without a row, which `sweep` removes.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .digests import digest_of, digest_of_file
from .errors import Busy, DamagedFiles, Refused
from .headers import layout_of
from .manifests import read_manifest, text_of
from .records import FileDigest, Files, Layout

PARTS: tuple[Files, ...] = ("slots", "model")
FOLDERS: Mapping[Files, str] = {"slots": "versions", "model": "models"}
PRIVATE, PASSABLE, PUBLIC = 0o700, 0o711, 0o755  # folders; a gate that is another user passes to a draft's model
PRIVATE_FILE, PUBLIC_FILE = 0o400, 0o444  # nobody writes to what was renamed in
BALLAST = 16 * 2**20  # bytes that are held back for the history, so that commands work on a full disk
TIGHT = 2**20  # bytes: with fewer that are free, a database may not even be opened


class Store:
    """One state directory."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.database = root / "mergd.db"
        self.lock = root / "lock"
        self.versions = root / "versions"
        self.models = root / "models"
        self.drafts = root / "drafts"
        self.prepared = root / "prepared"
        self.logs = root / "logs"  # what programs of the user write
        self.spool = root / "spool"  # what comes from the Hub, until it is folded
        self.ballast = root / "ballast"
        self.current = self.models / "current"

    def create(self) -> None:
        """Make the folders. Others may pass through the root, to the models and the status; nothing else."""
        for folder, mode in (
            (self.root, PUBLIC),
            (self.models, PUBLIC),
            (self.versions, PRIVATE),
            (self.drafts, PASSABLE),
        ):
            folder.mkdir(parents=True, exist_ok=True)
            folder.chmod(mode)
        sync_folder(self.root)

    def model(self, number: int) -> Path:
        """Return the published model folder of a version."""
        return self.models / folder_name(number)

    # ----------------------------------------------------------------------------------------------------------- room

    def free(self) -> int:
        """Return the bytes that are free for versions: what the ballast is still to take is not."""
        return max(0, shutil.disk_usage(self.root).free - (BALLAST - self._held()))

    def hold_ballast(self) -> None:
        """Take the ballast's bytes, if they are free."""
        if self._held() >= BALLAST or shutil.disk_usage(self.root).free < BALLAST + TIGHT:
            return
        try:
            fd = os.open(self.ballast, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(fd, 0, BALLAST)
            finally:
                os.close(fd)
        except OSError:  # it is a help, no need
            self.release_ballast()

    def release_ballast(self) -> bool:
        """Give the ballast's bytes back; returns whether there were any."""
        held = self._held()
        try:
            self.ballast.unlink(missing_ok=True)
        except OSError:
            return False
        return held > 0

    def make_room(self) -> None:
        """Release the ballast if nothing else is free: before the history is opened."""
        if shutil.disk_usage(self.root).free < TIGHT:
            self.release_ballast()

    def _held(self) -> int:
        return min(BALLAST, disk_bytes([self.ballast]))

    # --------------------------------------------------------------------------------------------------------- drafts

    def draft(self, number: int, step: str = "") -> "Draft":
        """Open an empty draft for a version, or for a step on the way to it."""
        self.drafts.chmod(PASSABLE)  # an older mergd made it
        folder = self.drafts / (folder_name(number) + step)
        shutil.rmtree(folder, ignore_errors=True)
        return Draft(folder)

    def install(self, draft: "Draft", number: int) -> None:
        """Rename a sealed draft in: its slots, then its model. It counts only once the history has the version's row."""
        for made, place in ((draft.slots, self.versions), (draft.model, self.models)):
            target = place / folder_name(number)
            if target.exists():  # left by a crash: the history has no such version
                shutil.rmtree(target)
            made.rename(target)
            sync_folder(place)
        draft.drop()

    def uninstall(self, draft: "Draft", number: int) -> None:
        """Take back what `install` renamed in, all of it or a part: the history got no such version."""
        for path in (self.versions / folder_name(number), self.models / folder_name(number)):
            shutil.rmtree(path, ignore_errors=True)
        draft.drop()

    def restore(self, draft: "Draft", number: int) -> None:
        """Put the files of a draft into the place of those that a version had, whether they are gone or damaged."""
        for made, place in ((draft.slots, self.versions), (draft.model, self.models)):
            target = place / folder_name(number)
            if target.exists():
                _put_into(made, target)
            else:
                made.rename(target)
            sync_folder(place)
        draft.drop()

    def point(self, number: int) -> None:
        """Let `models/current` lead to a version; whoever reads the link sees the old target or the new one."""
        aside = self.models / ".current"
        aside.unlink(missing_ok=True)
        aside.symlink_to(folder_name(number))
        aside.rename(self.current)
        sync_folder(self.models)

    def pointed(self) -> int | None:
        """Return the version that `models/current` leads to."""
        try:
            return int(os.readlink(self.current))
        except (FileNotFoundError, ValueError):
            return None

    # ----------------------------------------------------------------------------------------------- kept and dropped

    def numbers(self) -> list[int]:
        """Return the versions that lie here, whatever the history says."""
        return sorted(int(path.name) for path in self.versions.iterdir() if path.name.isdecimal())

    def way_in(self) -> str:
        """Return the next step where there is no database."""
        lost = self.versions.is_dir() and bool(self.numbers())
        return "its versions are there: mergd rebuild" if lost else "make one: mergd init --help"

    def slot_layouts(self, number: int) -> dict[tuple[str, str], Layout]:
        """Return where a version's slots lie, by (statistic, slot). Raises DamagedFiles."""
        return self.layouts_in(self._folder(number, "slots"), self.manifest(number)["slots"])

    def layouts_in(self, folder: Path, entries: Iterable[Mapping[str, Any]]) -> dict[tuple[str, str], Layout]:
        """Return where the slots in a folder lie, by (statistic, slot); `entries` as a manifest has them."""
        layouts: dict[tuple[str, str], Layout] = {}
        for entry in entries:
            path = folder / entry["name"]
            if size_of(path) != entry["size"]:
                raise DamagedFiles(f"{path} is not as it was written", self._named(path))
            try:
                layouts[entry["statistic"], entry["slot"]] = layout_of([path])
            except (Refused, Busy) as error:  # words for a checkpoint; this file is ours
                raise DamagedFiles(f"{path}: {error}", self._named(path)) from None
        return layouts

    def model_layout(self, number: int) -> Layout | None:
        """Return where a version's published weights lie; None if they are not there."""
        files = sorted(self.model(number).glob("*.safetensors"))
        try:
            return layout_of(files) if files else None
        except (Refused, Busy, OSError):
            return None

    def slot_sums(self, number: int) -> dict[str, str]:
        """Return the digest of each file of a version's slots, by its path."""
        folder = self._folder(number, "slots")
        return {str(folder / entry["name"]): entry["blake3"] for entry in self.manifest(number)["slots"]}

    def manifest(self, number: int) -> dict[str, Any]:
        """Return a version's manifest. Raises DamagedFiles."""
        return read_manifest(self.manifest_path(number))

    def manifest_path(self, number: int) -> Path:
        """Return where a version's manifest lies."""
        return self.versions / folder_name(number) / "manifest.json"

    def whole(self, number: int) -> bool:
        """Whether every file of a published model has the size that its manifest says; nothing else is read."""
        folder = self.model(number)
        return all(size_of(folder / file["name"]) == file["size"] for file in self.manifest(number)["model"])

    def stamps(self, number: int) -> dict[str, tuple[int, int]]:
        """Return size and modification time (ns) of a version's files that are there, by their path within the state."""
        paths = [self.manifest_path(number), *(self.root / name for name in self.promised(number))]
        stats = ((path, path.stat()) for path in paths if path.exists())
        return {self._named(path): (stat.st_size, stat.st_mtime_ns) for path, stat in stats}

    def promised(self, number: int, *parts: Files) -> dict[str, FileDigest]:
        """Return the files of these parts of a version, or of both, by their path within the state."""
        manifest = self.manifest(number)
        return {
            self._named(self._folder(number, part) / file["name"]): FileDigest(
                file["name"], file["size"], file["blake3"]
            )
            for part in (parts or PARTS)
            for file in manifest[part]
        }

    def changed(self, stamps: Mapping[str, tuple[int, int]], part: Files) -> list[str]:
        """Return those of a part's files that are gone, or have another size or time than these stamps; reads nothing."""
        mine = {name: stamp for name, stamp in stamps.items() if name.startswith(f"{FOLDERS[part]}/")}
        return [name for name, stamp in mine.items() if _stamp(self.root / name) != stamp]

    def damaged(self, number: int, *parts: Files) -> list[str]:
        """Read these parts of a version, or both, and return the names of the files that are not as its manifest says."""
        promised = self.promised(number, *parts)
        return [name for name, file in promised.items() if digest_of_file(self.root / name) != file.blake3]

    def _folder(self, number: int, part: Files) -> Path:
        return self.root / FOLDERS[part] / folder_name(number)

    def _named(self, path: Path) -> str:
        return str(path.relative_to(self.root))

    def drop(self, number: int, what: Files) -> None:
        """Delete a version's slots, or its model: aside first so that nobody finds half of it. Its manifest stays."""
        if what == "slots":
            for path in (self.versions / folder_name(number)).glob("slots-*"):
                path.unlink()
            return
        aside = self.drafts / f"dropped-{folder_name(number)}"
        if self.model(number).exists():
            self.model(number).rename(aside)
        if aside.exists():
            shutil.rmtree(aside)

    def sweep(self, known: Iterable[int], slots: Iterable[int], models: Iterable[int]) -> list[str]:
        """Remove drafts, folders that the history has no version for, and what it promises no more; returns their names.

        known: the versions that there are; slots, models: those whose slots, whose models are promised.
        """
        names, whole = {folder_name(n) for n in known}, {folder_name(n) for n in slots}
        served = {folder_name(n) for n in models} | {"current"}
        gone = [path for path in self.versions.iterdir() if path.name not in names]
        gone += [path for path in self.models.iterdir() if path.name not in served]
        gone += [path for name in names - whole for path in (self.versions / name).glob("slots-*")]
        gone += self.drafts.iterdir()
        for path in gone:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        return [str(path.relative_to(self.root)) for path in gone]

    def used(self, kept: Iterable[int]) -> int:
        """Return the bytes that this state takes on disk, linked files once; files may come and go meanwhile.

        kept: the versions that have files. The others' manifests are left out: looking at each would take ever longer.
        """
        return disk_bytes(self._all_files({folder_name(number) for number in kept}))

    def _all_files(self, kept: set[str]) -> Iterator[Path]:
        for at, folders, names in os.walk(self.root):
            if at == str(self.versions):
                folders[:] = kept.intersection(folders)
            yield from (Path(at) / name for name in names)

    def files(self, number: int, part: Files) -> list[Path]:
        """Return the files of a version's slots, or of its model, that are there."""
        if part == "slots":
            return sorted((self.versions / folder_name(number)).glob("slots-*"))
        return sorted(path for path in self.model(number).rglob("*") if not path.is_dir())

    def takes(self, number: int) -> int:
        """Return the bytes that a version takes on disk, with what it may share with others."""
        return disk_bytes([*self.files(number, "slots"), *self.files(number, "model")])


def _put_into(made: Path, target: Path) -> None:
    """Rename each file of a folder into another one, over what has its name there."""
    for at, folders, names in os.walk(made):
        inside = target / Path(at).relative_to(made)
        for folder in folders:
            (inside / folder).mkdir(mode=PUBLIC, exist_ok=True)
        for name in names:
            (Path(at) / name).rename(inside / name)
        sync_folder(inside)


def disk_bytes(paths: Iterable[Path], *, alone: bool = False) -> int:
    """Return the bytes that files take on disk: each file once, however many of its names are among them.

    alone: only of those that no other name leads to, which is what deleting them frees.
    """
    sizes: dict[tuple[int, int], int] = {}
    names_left: dict[tuple[int, int], int] = {}
    for path in paths:
        try:
            found = os.lstat(path)
        except FileNotFoundError:
            continue
        file = found.st_dev, found.st_ino
        sizes[file] = found.st_blocks * 512
        names_left[file] = names_left.get(file, found.st_nlink) - 1
    return sum(size for file, size in sizes.items() if not alone or names_left[file] == 0)


def size_of(path: Path) -> int:
    """Return a file's bytes, -1 where there is none."""
    return path.stat().st_size if path.is_file() else -1


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


class Draft:
    """A version being written, aside."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.slots = folder / "slots"
        self.model = folder / "model"
        self.source = folder / "source"  # of the checkpoint, if it is to be pinned
        for path, mode in ((folder, PASSABLE), (self.slots, PRIVATE), (self.model, PUBLIC)):
            path.mkdir(mode=mode)
            path.chmod(mode)

    def seal(self, manifest: Mapping[str, Any]) -> None:
        """Write the manifest, last, and sync the folders. The files in them were synced as they were written."""
        write_file(self.slots / "manifest.json", text_of(manifest), PRIVATE_FILE)
        for folder, _, _ in os.walk(self.model):
            sync_folder(Path(folder))
        sync_folder(self.slots)
        sync_folder(self.folder)

    def drop(self) -> None:
        """Remove whatever was written."""
        shutil.rmtree(self.folder, ignore_errors=True)


def folder_name(number: int) -> str:
    """Return the name of a version's folders."""
    return f"{number:06d}"


def version_digest(slots: Sequence[FileDigest], model: Sequence[FileDigest]) -> str:
    """Return the digest of a version, over its slots and its published weights."""
    files = [["slots", asdict(file)] for file in slots] + [["model", asdict(file)] for file in model]
    return hashlib.sha256(json.dumps(sorted(files, key=str), sort_keys=True).encode()).hexdigest()


def write_file(path: Path, data: bytes, mode: int) -> FileDigest:
    """Write a small new file, synced."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        os.fchmod(fd, mode)
        done = 0
        while done < len(data):
            done += os.write(fd, data[done:])
        os.fsync(fd)
    finally:
        os.close(fd)
    return FileDigest(path.name, len(data), digest_of(data))


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Replace a small file that others read: they see the old one or the new one. Not synced: it can be made again."""
    aside = path.with_name(f".{path.name}")
    aside.unlink(missing_ok=True)
    write(aside)
    aside.rename(path)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
