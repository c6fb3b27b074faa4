"""Manifests: which file lists the digests of a place's weight files, and what it says. Nothing is hashed here."""

import errno
import json
import os
import re
from collections.abc import Callable, Collection, Mapping
from functools import lru_cache
from pathlib import Path

from ....state.errors import Busy, NotPermitted, Refused
from ....state.headers import read_bounded
from .places import WEIGHTS

SUMS = "SHA256SUMS"  # in a folder, as `sha256sum` writes it; of a lone file: its name and .sha256
TREES = Path(".cache", "huggingface", "trees")  # the Hub client's, of a download into a folder of one's own
LARGEST = 4 * 2**20  # bytes
MOST = 4096  # weight files; what lists more is no checkpoint's manifest
KEPT = 64  # manifests whose digests are kept, so that no scan reads again what has not changed
DIGEST = "[0-9a-fA-F]{64}"
PLAIN = re.compile(rf"\\?(?P<digest>{DIGEST}) [ *](?:\./)?(?P<name>[^/]+)")
TAGGED = re.compile(rf"SHA256 \((?P<name>[^/]+)\) = (?P<digest>{DIGEST})")


def listed(folder: Path, lone: str, weights: Collection[str]) -> tuple[str, dict[str, str]]:
    """Return a manifest's name and the sha256 that it lists for each weight file, both empty if there is none.

    lone: the name of a lone weight file, else empty. weights: the weight files that are there.
    The Hub client lists what a repository holds, whether it was asked for all of it or not: of that, only what is there.
    """
    sums = f"{lone}.sha256" if lone else SUMS
    if (digests := _read(folder / sums, sha256sums)) is not None:
        return sums, {name: digest for name, digest in digests.items() if not lone or name == lone}
    tree = None if lone else _newest(folder / TREES)
    if tree is not None and (digests := _read(tree, hub_tree)) is not None:
        there = {name: digest for name, digest in digests.items() if name in weights}
        return (str(tree.relative_to(folder)), there) if there else ("", {})
    return "", {}


def sha256sums(text: str) -> dict[str, str]:
    """Return {weight file: sha256} of what `sha256sum` printed, plain or with --tag; other files are left out."""
    found = {}
    for line in map(str.rstrip, text.splitlines()):
        match = PLAIN.fullmatch(line) or TAGGED.fullmatch(line)
        if match and match["name"].endswith(WEIGHTS):
            found[match["name"]] = match["digest"].lower()
    return found


def hub_tree(text: str) -> dict[str, str]:
    """Return {weight file: sha256} of the Hub client's list of a repository's files; nothing if it is none."""
    try:
        files = json.loads(text)["files"]
        return {name: str(entry["lfs_sha256"]) for name, entry in files.items() if _is_large_weight(name, entry)}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def _is_large_weight(name: str, entry: Mapping[str, object]) -> bool:
    return name.endswith(WEIGHTS) and "/" not in name and bool(entry.get("lfs_sha256"))


# ------------------------------------------------------------------------------------------------------- reading them

Parse = Callable[[str], dict[str, str]]
Stamp = tuple[int, ...]  # what tells that a file is still the same one


def _read(path: Path, parse: Parse) -> Mapping[str, str] | None:
    """Return what a manifest lists; None if there is none. Raises OSError where it cannot be read."""
    try:
        status = os.stat(path)
        stamp = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        return _parsed(str(path), stamp, parse)
    except (FileNotFoundError, NotADirectoryError, Busy, Refused):  # none, no file, or far too large
        return None
    except NotPermitted:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path)) from None
    except OSError as error:
        if error.errno == errno.ELOOP:
            return None
        raise


@lru_cache(maxsize=KEPT)
def _parsed(path: str, stamp: Stamp, parse: Parse) -> Mapping[str, str] | None:
    text = read_bounded(path, LARGEST).decode(errors="replace")
    digests = parse(text) if text else {}
    return digests if text and len(digests) <= MOST else None


def _newest(folder: Path) -> Path | None:
    """Return the list that was written last: of the revision that was asked for last."""
    try:
        paths = [folder / name for name in os.listdir(folder) if name.endswith(".json")]
    except (FileNotFoundError, NotADirectoryError):
        return None
    return max(paths, key=_written, default=None)


def _written(path: Path) -> int:
    """Return when a file was written, in wall-clock nanoseconds; of what cannot be looked at, before all others."""
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return -1
