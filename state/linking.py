"""Linking: a published file that the parent's model folder has already is a second name for it, not written again.

What is linked shares its bytes, mode and times with every version that links it. Nothing changes a file that was renamed in.
"""

import os
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

from .errors import DamagedFiles
from .records import FileDigest, Version
from .store import PUBLIC_FILE, Store


def _manifest(store: Store, version: Version | None) -> dict[str, Any]:
    """Return what is known of files that may be linked: nothing of a version that is gone or damaged."""
    try:
        return store.manifest(version.number) if version is not None and version.kept else {}
    except DamagedFiles:
        return {}


class Linking:
    """The published files of a version's parent that may be linked; none where it has no parent whose files are whole."""

    def __init__(self, store: Store, parent: Version | None) -> None:
        self._root = store.root
        self._files: dict[str, FileDigest] = {}
        self._untouched: list[str] = []
        manifest = _manifest(store, parent)
        if parent is not None and manifest:
            self._folder, self._stamps = store.model(parent.number), parent.stamps
            self._files = {f["name"]: FileDigest(f["name"], f["size"], f["blake3"]) for f in manifest["model"]}
            self._untouched = manifest["untouched"]

    def untouched(self, target: Path, header: bytes) -> FileDigest | None:
        """Link a file of untouched weights by its header, which says names, dtypes, shapes and order; None if there is none.

        The base model and the dtype are pinned: two such files with one header have the same bytes.
        """
        for name in self._untouched:
            if self._begins(name, header) and self._link(name, target):
                return replace(self._files[name], name=target.name)
        return None

    def same(self, file: FileDigest, target: Path) -> bool:
        """Link a file that the parent has under the same name with the same content; whether it was."""
        return self._files.get(file.name) == file and self._link(file.name, target)

    def _begins(self, name: str, header: bytes) -> bool:
        try:
            with (self._folder / name).open("rb") as file:
                return file.read(len(header)) == header
        except OSError:
            return False

    def _link(self, name: str, target: Path) -> bool:
        source = self._folder / name
        try:
            os.link(source, target, follow_symlinks=False)
        except OSError:  # it is gone, or the file system has no links, or no more of them to this file
            return False
        status = target.lstat()  # of the link: what it leads to stays the same whatever becomes of the source's name
        as_written = self._stamps.get(str(source.relative_to(self._root))) == (status.st_size, status.st_mtime_ns)
        if as_written and status.st_mode == stat.S_IFREG | PUBLIC_FILE:
            return True
        target.unlink()
        return False
