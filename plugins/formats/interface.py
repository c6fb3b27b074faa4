"""What a format is: it knows, from names and headers alone, what a checkpoint of its kind looks like on disk."""

from pathlib import Path
from typing import Protocol

from ...state.headers import MAX_TENSORS
from ...state.records import Layout


class Format(Protocol):
    """One kind of checkpoint on disk."""

    def recognises(self, place: Path) -> bool:
        """Whether what lies there is of this kind, by names alone."""
        ...

    def layout(self, place: Path, most: int = MAX_TENSORS) -> Layout:
        """Return where the tensors lie, at most so many, from headers alone.

        Raises Busy, saying what is waited for, while something is still missing; NotPermitted where a file cannot be
        read; Refused where no waiting helps.
        """
        ...
