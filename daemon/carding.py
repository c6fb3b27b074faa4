"""Carding: a drafted version gets its model card, README.md, and mergd_manifest.json, which has a digest of every other file.

Neither enters the version's digest, which is that of weights and slots; nor is a replay held against them.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from ..state.digests import DIGESTS
from ..state.records import FileDigest, Version
from ..state.store import PUBLIC_FILE, Draft, write_file
from .ancestry import Line, made_of
from .cards import CARD, MANIFEST, card_of
from .front_matter import front_matter_in
from .method import Method
from .opening import Merge, pinned_by
from .settings import Settings


def add_card(
    draft: Draft,
    files: Sequence[FileDigest],
    version: Version,
    line: Line,
    method: Method,
    settings: Settings,
    merge: Merge,
) -> list[FileDigest]:
    """Write both into a draft's model folder, which has these files; returns all of them.

    line: that leads to the version, which is its last. method: by which the version is read out.
    """
    base = merge.base
    facts = _facts(version, line, method, settings, merge)
    loads = bool(base.config.keys() & {"model_type", "architectures"})
    card = card_of(facts, front_matter_in(base.folder), transformers=loads)
    listed = [*files, write_file(draft.model / CARD, card.encode(), PUBLIC_FILE)]
    return [*listed, write_file(draft.model / MANIFEST, _text_of(facts, listed), PUBLIC_FILE)]


def _facts(version: Version, line: Line, method: Method, settings: Settings, merge: Merge) -> dict[str, Any]:
    """Return what the manifest says of a version, and the card in words: nothing of it is of this machine."""
    base, pinned = merge.base, pinned_by(settings, merge.method)
    place = pinned.pop("base_model")
    repository = place.partition("@")[0] if base.commit else None  # else it is a path, which means nothing elsewhere
    described, (checkpoints, others) = method.describe(), made_of(line)
    return {
        "version": version.number,
        "digest": version.digest,
        "base": {"repository": repository, "commit": base.commit, "digest": base.digest},
        "rule": method.name,
        "parameters": described["parameters"],
        "method": described,
        "pinned": pinned,
        "scale": version.scale,
        "totals": asdict(version.totals),
        "checkpoints": checkpoints,
        "more": max(0, version.totals.folded - len(checkpoints)),
        "others": others,
    }


def _text_of(facts: Mapping[str, Any], files: list[FileDigest]) -> bytes:
    listed = sorted((asdict(file) for file in files), key=lambda file: str(file["name"]))
    return (json.dumps({**facts, "digests": DIGESTS, "files": listed}, indent=1, sort_keys=True) + "\n").encode()
