"""The manifest of a version: what it is made of, enough to find its row again, without clock or host."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from ..state.records import Checkpoint, Version
from ..state.store import version_digest
from .folding import FoldResult
from .opening import Merge, parameters_of
from .publishing import Published


def manifest(
    version: Version, row: Checkpoint | None, digest: str | None, merge: Merge, result: FoldResult, published: Published
) -> dict[str, Any]:
    """Return a version's manifest. row: the checkpoint that was folded or removed; digest: of its content."""
    return {
        "version": version.number,
        "parent": version.parent,
        "cause": version.cause,
        "arguments": dict(version.arguments),
        "checkpoint": {"name": row.name, "digest": digest, "source": row.source, "place": row.place} if row else None,
        "base_digest": merge.base.digest,
        "rule": version.rule,
        "parameters": parameters_of(merge.rule),
        "totals": asdict(version.totals),
        "scale": version.scale,
        "digest": version.digest,
        "shard_size": published.shard_size,
        "slots": result.slots,
        "model": [asdict(file) for file in published.files],
        "untouched": published.untouched,
    }


def digest_of(result: FoldResult, published: Published) -> str:
    """Return the digest of what was drafted: slots and published weights."""
    return version_digest(result.files, [file for file in published.files if file.name.endswith(".safetensors")])


def slots_of(entries: "list[Mapping[str, Any]] | list[dict[str, Any]]") -> list[tuple[str, str, str]]:
    """Return (statistic, slot, sha256) of a manifest's slots, sorted: what two of them must have in common."""
    return sorted((entry["statistic"], entry["slot"], entry["sha256"]) for entry in entries)
