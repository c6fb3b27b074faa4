"""Manifests: which file lists the digests of a place's weight files, and what it says. Nothing is hashed here."""

import json
import os
import re
from collections.abc import Collection, Mapping
from pathlib import Path

from .places import WEIGHTS

SUMS = "SHA256SUMS"  # in a folder, as `sha256sum` writes it; of a lone file: its name and .sha256
TREES = Path(".cache", "huggingface", "trees")  # the Hub client's, of a download into a folder of one's own
LARGEST = 8 * 2**20  # bytes
DIGEST = "[0-9a-fA-F]{64}"
PLAIN = re.compile(rf"\\?(?P<digest>{DIGEST}) [ *](?:\./)?(?P<name>[^/]+)")
TAGGED = re.compile(rf"SHA256 \((?P<name>[^/]+)\) = (?P<digest>{DIGEST})")


def listed(folder: Path, lone: str, weights: Collection[str]) -> tuple[str, dict[str, str]]:
    """Return a manifest's name and the sha256 that it lists for each weight file, both empty if there is none.

    lone: the name of a lone weight file, else empty. weights: the weight files that are there.
    The Hub client lists what a repository holds, whether it was asked for all of it or not: of that, only what is there.
    """
    sums = f"{lone}.sha256" if lone else SUMS
    if text := _text(folder / sums):
        return sums, {name: digest for name, digest in sha256sums(text).items() if not lone or name == lone}
    tree = None if lone else _newest(folder / TREES)
    if tree is not None and (text := _text(tree)):
        digests = {name: digest for name, digest in hub_tree(text).items() if name in weights}
        return (str(tree.relative_to(folder)), digests) if digests else ("", {})
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


def _text(path: Path) -> str:
    """Return what a small file holds; nothing if it is none."""
    try:
        if not path.is_file() or path.stat().st_size > LARGEST:
            return ""
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return ""


def _newest(folder: Path) -> Path | None:
    """Return the list that was written last: of the revision that was asked for last."""
    try:
        paths = [folder / name for name in os.listdir(folder) if name.endswith(".json")]
        return max(paths, key=lambda path: path.stat().st_mtime_ns, default=None)
    except (FileNotFoundError, NotADirectoryError):
        return None
