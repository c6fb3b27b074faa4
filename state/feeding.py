"""Feeding: how bytes that do not lie on this disk reach who reads them. Their files have holes here, and whole headers."""

from collections.abc import Callable
from typing import Protocol, Self

Fill = Callable[[memoryview, str, int], None]
"""Fills a view with what a file holds from an offset on. Raises Unavailable while that cannot be had, and soon after a stop."""


class Feed(Protocol):
    """Gives the bytes of some files, each checked before it is given."""

    def knows(self, path: str) -> bool:
        """Whether the bytes of a file come from here, and not from the disk."""
        ...

    def open(self) -> Fill:
        """Return what fills the views of one reader."""
        ...

    def among(self, readers: int) -> Self:
        """Return the same feed for one of so many that are read at once: all together keep no more than one does."""
        ...

    def until(self, stopped: Callable[[], bool]) -> Self:
        """Return the same feed for work that may be told to stop."""
        ...
