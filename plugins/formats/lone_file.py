"""A lone `.safetensors` file that holds the whole model."""

from pathlib import Path

from ...state.headers import MAX_TENSORS, layout_of
from ...state.records import Layout


class LoneFile:
    """One file, whatever its name before the suffix."""

    def recognises(self, place: Path) -> bool:
        """Whether it is a file with the suffix."""
        return place.suffix == ".safetensors" and place.is_file()

    def layout(self, place: Path, most: int = MAX_TENSORS) -> Layout:
        """Return the tensors of the file."""
        return layout_of([place], most)
