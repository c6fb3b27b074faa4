"""Room for the next version within the setting `disk`: what the state may take at most."""

from collections.abc import Sequence

from ..state.store import Store


def lacking(store: Store, kept: Sequence[int], head: int | None, need: int, budget: int) -> str:
    """Return why another version would be more than the state may take, with the numbers; empty if it would not.

    kept: the versions that have files.
    need: bytes that it takes, as computed; one takes more where files lie beside the weights, as the head shows.
    budget: bytes; 0 for whatever the disk has.
    """
    if not budget:
        return ""
    need, used = max(need, store.takes(head) if head is not None else 0), store.used(kept)
    if used + need <= budget:
        return ""
    return f"disk full: a version needs {need:,} bytes, the state takes {used:,}, the setting disk allows {budget:,}"
