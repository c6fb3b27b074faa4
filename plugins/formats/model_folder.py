"""A Hugging Face model folder: `model.safetensors`, or shards with `model.safetensors.index.json`."""

from pathlib import Path, PurePosixPath

from ...state.errors import Busy, Refused
from ...state.headers import layout_of
from ...state.records import Layout, Reason
from ._files import read_json, refuse_pickles
from .adapter import Adapter
from .interface import Contents

ONE_FILE = "model.safetensors"
INDEX = "model.safetensors.index.json"
CONFIG = "config.json"


class ModelFolder:
    """What `save_pretrained` writes; every other file in the folder is ignored."""

    def recognises(self, place: Path) -> bool:
        """Whether it is a folder, and none of an adapter."""
        return place.is_dir() and not Adapter().recognises(place)

    def contents(self, place: Path) -> Contents:
        """Return the tensors of the one file, or of all shards once all of them are there."""
        if (place / INDEX).exists():
            return Contents.whole(self._sharded(place), _config(place))
        if (place / ONE_FILE).exists():
            return Contents.whole(layout_of([place / ONE_FILE]), _config(place))
        shards = sorted(path.name for path in place.glob("*-of-*.safetensors"))
        if not shards:
            refuse_pickles(place)
        raise Busy(f"waits for {INDEX}" if shards else f"waits for {ONE_FILE} or {INDEX}")

    def _sharded(self, place: Path) -> Layout:
        weight_map = _weight_map(place)
        shards = sorted(set(weight_map.values()))
        missing = [shard for shard in shards if not (place / shard).exists()]
        if missing:
            raise Busy(f"waits for shard {missing[0]} ({len(missing)} of {len(shards)} are missing)")
        layouts = [layout_of([place / shard]) for shard in shards]
        for shard, layout in zip(shards, layouts, strict=True):
            for name in layout.tensors:
                if weight_map.get(name) != shard:
                    raise _bad_index(f"{name!r} in {shard}, where {INDEX} does not name it")
        tensors = {name: info for layout in layouts for name, info in layout.tensors.items()}
        lost = [name for name in weight_map if name not in tensors]
        if lost:
            raise _bad_index(f"{INDEX} names {lost[0]!r}, which is not there ({len(lost)} such)")
        return Layout(tensors, tuple(str(place / shard) for shard in shards))


def _config(place: Path) -> dict[str, object]:
    """Return its config.json; what cannot be read tells nothing."""
    try:
        return read_json(place / CONFIG)
    except (Busy, Refused):
        return {}


def _weight_map(place: Path) -> dict[str, str]:
    """Return {weight name: shard}, every shard a plain file name."""
    weight_map = read_json(place / INDEX).get("weight_map")
    if not isinstance(weight_map, dict):
        raise _bad_index(f"{INDEX} without a weight_map")
    for name in weight_map.values():
        if not isinstance(name, str) or PurePosixPath(name).name != name or name in (".", "..") or "\0" in name:
            raise _bad_index(f"the shard name {name!r}")
    return weight_map


def _bad_index(found: str) -> Refused:
    expected = f"an {INDEX} of plain file names, and each weight in the shard that it names"
    return Refused(Reason("bad-index", found, expected, "save the checkpoint again into an empty folder"))
