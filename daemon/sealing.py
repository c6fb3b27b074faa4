"""Sealing: what a version's manifest says, enough to find its rows again, without clock or host but in `made_on`."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

from ..state.contributions import as_text
from ..state.manifests import named
from ..state.records import Checkpoint, Contribution, Version
from ..state.store import version_digest
from .folding import FoldResult
from .machine import made_on
from .opening import Merge, pinned_by
from .publishing import Published
from .settings import Settings


def contents_of_manifest(
    version: Version,
    about: Checkpoint | None,
    settings: Settings,
    merge: Merge,
    result: FoldResult,
    published: Published,
    brought: Contribution | None,
    merged: Iterable[Checkpoint] = (),
) -> dict[str, Any]:
    """Return what a version is made of.

    about: the checkpoint that was folded, whose digest is known, or removed. merged: those of a re-merge.
    """
    folded, base = version.cause == "fold", merge.base
    return {
        "version": version.number,
        "parent": version.parent,
        "cause": version.cause,
        "arguments": dict(version.arguments),
        "gates": list(version.gates),
        "checkpoint": named(about) if folded else None,
        "removed": None if folded else named(about),
        "merged": [named(row) for row in merged],
        "claimed": {"public": about.public, "licence": about.licence} if folded and about else None,
        "contribution": as_text(brought) if brought else None,
        "rule": version.rule,
        "method": dict(version.method),
        "pinned": pinned_by(settings, merge.method),
        "base_commit": base.commit,
        "base_digest": base.digest,
        "totals": asdict(version.totals),
        "scale": version.scale,
        "digest": version.digest,
        "shard_size": published.shard_size,
        "slots": result.slots,
        "model": [asdict(file) for file in published.files],
        "untouched": published.untouched,
        "made_on": made_on(),
    }


def digest_of(result: FoldResult, published: Published) -> str:
    """Return the digest of what was drafted: slots and published weights."""
    return version_digest(result.files, [file for file in published.files if file.name.endswith(".safetensors")])


def slots_of(entries: Iterable[Mapping[str, Any]]) -> list[tuple[str, str, str]]:
    """Return (statistic, slot, digest) of a manifest's slots, sorted: what two of them must have in common."""
    return sorted((entry["statistic"], entry["slot"], entry["blake3"]) for entry in entries)
