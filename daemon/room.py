"""Room for the next version within the setting `disk`: what the state may take at most."""

from collections.abc import Sequence

from ..state.prepared import forget
from ..state.store import Store


def lacking(store: Store, kept: Sequence[int], head: int | None, need: int, budget: int) -> str:
    """Return why another version would be more than the state may take, with the numbers; empty if it would not.

    What is prepared goes before that is so.

    kept: the versions that have files.
    need: bytes that it takes, as computed; one takes more where files lie beside the weights, as the head shows.
    budget: bytes; 0 for whatever the disk has.
    """
    if not budget or spare(store, kept, head, need, budget) >= 0:
        return ""
    if forget(store.prepared) and spare(store, kept, head, need, budget) >= 0:
        return ""
    need, used = _needed(store, head, need), store.used(kept)
    return f"disk full: a version needs {need:,} bytes, the state takes {used:,}, the setting disk allows {budget:,}"


def spare(store: Store, kept: Sequence[int], head: int | None, need: int, budget: int) -> int:
    """Return the bytes that a budget leaves besides what the next version needs: negative where it does not fit."""
    return budget - store.used(kept) - _needed(store, head, need)


def _needed(store: Store, head: int | None, need: int) -> int:
    return max(need, store.takes(head) if head is not None else 0)
