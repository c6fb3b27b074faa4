"""A Hugging Face model folder: `model.safetensors`, or shards with `model.safetensors.index.json`."""

import json
from pathlib import Path, PurePosixPath

from ...state.errors import Busy, Refused
from ...state.headers import MAX_HEADER, layout_of
from ...state.records import Layout, Reason

ONE_FILE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


class ModelFolder:
    """What `save_pretrained` writes; every other file in the folder is ignored."""

    def recognises(self, place: Path) -> bool:
        """Whether it is a folder."""
        return place.is_dir()

    def layout(self, place: Path) -> Layout:
        """Return the tensors of the one file, or of all shards once all of them are there."""
        if (place / INDEX).exists():
            return self._sharded(place)
        if (place / ONE_FILE).exists():
            return layout_of([place / ONE_FILE])
        if (place / "adapter_config.json").exists():
            raise Refused(
                Reason("adapter", "a PEFT adapter", "a full model", "merge it into the base first: merge_and_unload")
            )
        pickles = sorted(path.name for pattern in PICKLES for path in place.glob(pattern))
        seen = f"; {pickles[0]} is a pickle, which mergd never reads" if pickles else ""
        raise Busy(f"waits for {ONE_FILE} or {INDEX}{seen}", "save it with safe_serialization=True" if pickles else "")

    def _sharded(self, place: Path) -> Layout:
        weight_map = _weight_map(place / INDEX)
        shards = sorted(set(weight_map.values()))
        missing = [shard for shard in shards if not (place / shard).exists()]
        if missing:
            raise Busy(f"waits for shard {missing[0]} ({len(missing)} of {len(shards)} are missing)")
        layout = layout_of([place / shard for shard in shards])
        strangers = [name for name, info in layout.tensors.items() if weight_map.get(name) != Path(info.file).name]
        lost = [name for name in weight_map if name not in layout.tensors]
        if strangers or lost:
            raise Refused(
                Reason(
                    "index-mismatch",
                    f"{(strangers or lost)[0]!r} not where {INDEX} says ({len(strangers) + len(lost)} such)",
                    "each weight in the shard that the index names",
                    "save the checkpoint again into an empty folder",
                )
            )
        return layout


def _weight_map(path: Path) -> dict[str, str]:
    """Return {weight name: shard}, every shard a plain file name."""
    if path.stat().st_size > MAX_HEADER:
        raise _bad_index(f"{path.stat().st_size} bytes")
    try:
        weight_map = json.loads(path.read_bytes())["weight_map"]
        names = set(weight_map.values())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise Busy(f"waits for {INDEX} to be whole") from None
    for name in names:
        if not isinstance(name, str) or PurePosixPath(name).name != name or name in (".", ".."):
            raise _bad_index(f"the shard name {name!r}")
    return dict(weight_map)


def _bad_index(found: str) -> Refused:
    return Refused(Reason("bad-index", found, f"an {INDEX} of plain file names", "save the checkpoint again"))
