"""A version's manifest: what it was made of and its files, as JSON that vouches for itself in one of its lines.

The line `"sha256"` is the sha256 of all the others: `grep -v '^ "sha256"' manifest.json | sha256sum` gives it again.
The files' own digests are what `"digests"` says, for `b3sum`.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .digests import DIGESTS, check_digests
from .errors import DamagedFiles
from .records import Checkpoint

_LINE = re.compile(rb'^ "sha256": "([0-9a-f]{64})",?\n', re.MULTILINE)  # of the outermost object alone
PINNED_BEFORE = ("base_model", "rule", "parameters", "out_dtype", "threads", "convolutions")
SINCE = "made_on"  # what every manifest has that must have the line: older ones have neither


def text_of(manifest: Mapping[str, Any]) -> bytes:
    """Return a manifest's text: the same bytes for the same values."""
    blank = "0" * 64
    text = (json.dumps({**manifest, "digests": DIGESTS, "sha256": blank}, indent=1, sort_keys=True) + "\n").encode()
    return text.replace(f'\n "sha256": "{blank}"'.encode(), f'\n "sha256": "{_digest(text)}"'.encode())


def read_manifest(path: Path) -> dict[str, Any]:
    """Return a manifest. Raises DamagedFiles if it cannot be read, or is not as it was written.

    Raises Misconfigured if a mergd wrote it whose digests were others.
    """
    try:
        data = path.read_bytes()
        manifest = dict(json.loads(data))
    except (OSError, ValueError, TypeError) as error:
        raise _damaged(path, f"cannot be read: {error}") from None
    said = manifest.pop("sha256", None)
    if (said is None and SINCE in manifest) or said != _digest(data):
        raise _damaged(path, "is not as it was written")
    check_digests(manifest.pop("digests", None))
    return manifest


def named(row: Checkpoint | None) -> dict[str, Any] | None:
    """Return a checkpoint as a manifest names it; of what lies in a repository, also the commit, by which it is known again."""
    fields = ("id", "name", "digest", "source", "place")
    revision = {"revision": row.fingerprint} if row and "://" in row.place else {}
    return {field: getattr(row, field) for field in fields} | revision if row else None


def _digest(text: bytes) -> str | None:
    """Return the sha256 of all lines but the one that says it; None where no line does."""
    line = _LINE.search(text)
    return hashlib.sha256(text[: line.start()] + text[line.end() :]).hexdigest() if line else None


def _damaged(path: Path, what: str) -> DamagedFiles:
    name = "/".join(path.parts[-3:])
    return DamagedFiles(f"{path} {what}", name)


def pinned_in(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return what init pinned, by a manifest; an older mergd wrote less, and between all else."""
    return dict(manifest.get("pinned") or {name: manifest[name] for name in PINNED_BEFORE if name in manifest})
