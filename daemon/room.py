"""Room for the next version: what it lacks besides free disk, by the setting `disk` and by what the head still has."""

from ..state.records import Version
from ..state.store import Store


def lacking(store: Store, head: Version | None, need: int, budget: int) -> str:
    """Return why no version can be folded onto the head now, with the numbers; empty if one can.

    need: bytes that it takes, as computed; one takes more where files lie beside the weights, as the head shows.
    budget: bytes that the state may take; 0 for whatever the disk has.
    """
    if not budget:
        return ""
    need, used = max(need, store.takes(head.number) if head else 0), store.used()
    return (
        f"disk full: a version needs {need:,} bytes, the state takes {used:,}, the setting disk allows {budget:,}"
        if used + need > budget
        else ""
    )
