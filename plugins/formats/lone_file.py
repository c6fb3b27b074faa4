"""A lone `.safetensors` file that holds the whole model."""

import re
from pathlib import Path

from ...state.errors import Busy, Refused
from ...state.headers import MAX_TENSORS, layout_of
from ._files import never_read, never_read_reason
from .interface import Contents

SHARD = re.compile(r".*-\d{5}-of-\d{5}\.safetensors")


class LoneFile:
    """One file, whatever its name before the suffix; other kinds of weight files are known, to be refused by name."""

    def recognises(self, place: Path) -> bool:
        """Whether it is a file with the suffix of weights."""
        return place.is_file() and (place.suffix == ".safetensors" or never_read(place.name))

    def contents(self, place: Path, most: int = MAX_TENSORS) -> Contents:
        """Return the tensors of the file."""
        if never_read(place.name):
            raise Refused(never_read_reason(place.name))
        if SHARD.fullmatch(place.name):
            raise Busy(f"{place.name} is one of several shards", "put all of them and their index into a folder")
        return Contents.whole(layout_of([place], most))
