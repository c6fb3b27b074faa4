"""What the Hub tells about a repository: its model's tags, partly from the front matter of its card, and its information."""

import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import yaml

from .repositories import Blob, Commit, Repository

BASE = "base_model:"


def iso(when: float) -> str:
    """Return a time as the Hub writes it."""
    return datetime.fromtimestamp(when, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def card(files: Mapping[str, Blob]) -> dict[str, Any]:
    """Return the front matter of a README, if there is any."""
    text = files["README.md"].data.decode(errors="replace") if "README.md" in files else ""
    parts = text.split("---\n", 2)
    if len(parts) < 3 or parts[0]:
        return {}
    try:
        read = yaml.safe_load(parts[1])
    except yaml.YAMLError:
        return {}
    return read if isinstance(read, dict) else {}


def labels(repository: Repository, commit: Commit) -> list[str]:
    """Return a model's tags: those of its files, those of its card, and those that were given."""
    known = card(commit.files)
    bases = _list(known.get("base_model"))
    relation = known.get("base_model_relation") or ("merge" if len(bases) > 1 else "finetune")
    found = ["safetensors"] if any(name.endswith(".safetensors") for name in commit.files) else []
    found += [known["library_name"]] if "library_name" in known else []
    found += _list(known.get("tags"))
    found += [BASE + base for base in bases] + [f"{BASE}{relation}:{base}" for base in bases]
    found += [f"license:{known['license']}"] if "license" in known else []
    return list(dict.fromkeys([*found, *repository.labels]))


def _list(value: Any) -> list[str]:
    return value if isinstance(value, list) else [value] if value else []


def information(repository: Repository, commit: Commit, with_blobs: bool = False) -> dict[str, Any]:
    """Return all that the Hub tells of a repository at a commit."""
    tags = labels(repository, commit)
    return {
        "_id": hashlib.sha1(repository.name.encode()).hexdigest()[:24],
        "id": repository.name,
        "modelId": repository.name,
        "author": repository.name.split("/")[0],
        "sha": commit.id,
        "lastModified": iso(repository.modified),
        "createdAt": iso(repository.created),
        "private": repository.private,
        "gated": "manual" if repository.gated is True else repository.gated,
        "disabled": repository.disabled,
        "downloads": 0,
        "likes": 0,
        "tags": tags,
        "cardData": card(commit.files),
        "siblings": [_sibling(name, blob, with_blobs) for name, blob in sorted(commit.files.items())],
        **_bases(tags),
    }


def _sibling(name: str, blob: Blob, with_blobs: bool) -> dict[str, Any]:
    if not with_blobs:
        return {"rfilename": name}
    lfs = {"lfs": {"sha256": blob.sha256, "size": blob.size, "pointerSize": len(blob.pointer)}} if blob.lfs else {}
    return {"rfilename": name, "size": blob.size, "blobId": blob.git_id, **lfs}


def _bases(tags: list[str]) -> dict[str, Any]:
    found = [tag.split(":") for tag in tags if tag.startswith(BASE) and tag.count(":") == 2]
    models = [{"id": base} for _, _, base in found]
    return {"baseModels": {"relation": found[0][1], "models": models}} if found else {}


def entry(path: str, blob: Blob) -> dict[str, Any]:
    """Return a file as the tree lists it."""
    lfs = {"lfs": {"oid": blob.sha256, "size": blob.size, "pointerSize": len(blob.pointer)}} if blob.lfs else {}
    return {"type": "file", "oid": blob.git_id, "size": blob.size, "path": path, **lfs}


def told_of(commit: Commit) -> dict[str, Any]:
    """Return a commit as a history lists it."""
    title, message = commit.title, commit.message
    return {
        "id": commit.id,
        "title": title,
        "message": message,
        "authors": [{"user": "user"}],
        "date": iso(commit.when),
    }
