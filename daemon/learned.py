"""What is known of a version by now: its model card, as it was published, and what happened since, which no card says."""

from collections.abc import Iterator
from typing import Any

from ..state.digests import digest_of
from ..state.errors import Damaged, Usage
from ..state.history import History
from ..state.records import Version
from ..state.store import Store
from .asking import history_of, store_of
from .cards import CARD
from .naming import find_version
from .settings import Settings


def card(settings: Settings, text: str) -> dict[str, Any]:
    """Return a version's card, and what was learned of it since. Raises Usage where its model folder is gone."""
    store = store_of(settings)
    with history_of(settings) as history:
        version = find_version(history, text)
        return {"version": version.number, "card": _card(version, store), "since": list(_since(version, history))}


def _card(version: Version, store: Store) -> str:
    """Return the card in a version's folder. Raises Damaged if it is not as it was written."""
    if not version.model_kept:
        hint = f"to make them once more: mergd replay {version}; what is known of it without them: mergd show {version}"
        raise Usage(f"the files of {version} were dropped by retention", hint)
    path = store.model(version.number) / CARD
    sums = {file["name"]: file["blake3"] for file in store.manifest(version.number)["model"]}
    if CARD not in sums:
        raise Usage(f"{version} was published by a mergd that wrote no cards", f"see: mergd show {version}")
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        data = b""
    if digest_of(data) != sums[CARD]:
        raise Damaged(f"{path} is not as it was written", f"see: mergd verify {version}")
    return data.decode()


def _since(version: Version, history: History) -> Iterator[str]:
    head, tags = history.head(), history.tags.of(version.number)
    line = {other.number for other in history.lineage(head.number if head else None)}
    if head is not None and head.number == version.number:
        yield "It is the head."
    elif version.number in line:
        yield f"The head, {head}, was made from it."
    else:
        yield f"It is not in the line of the head, {head}."
    if tags:
        yield f"Its tags: {', '.join(tags)}."
    for move in reversed(history.moves()):
        if move.from_version == version.number and move.why in ("rollback", "damage"):
            yield f"The head moved from it to v{move.to_version} at {move.at}, by {move.who}: {move.why}."
    for gate, found in history.evaluations.of(version.digest).items():
        told = ", ".join(f"{name} {metric.value:.6g} (n = {metric.n})" for name, metric in found.metrics.items())
        yield f"Gate {gate} measured at {found.at}: {told}."
    if version.damaged:
        yield f"Damaged: {version.damaged}."
