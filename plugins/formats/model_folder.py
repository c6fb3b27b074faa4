"""A Hugging Face model folder: `model.safetensors`, or shards with `model.safetensors.index.json`."""

from pathlib import Path

from ...state.errors import Busy, Refused
from ...state.header_text import JsonText
from ...state.headers import MAX_HEADER, MAX_TENSORS, layout_of, read_bounded
from ...state.records import Layout, Reason
from ...state.wording import shown
from ._files import read_json, refuse_never_read
from .adapter import Adapter
from .interface import Contents

ONE_FILE = "model.safetensors"
INDEX = "model.safetensors.index.json"
CONFIG = "config.json"
MAX_SHARDS = 512  # all are open at once
MAX_SHARD_NAME = 255  # bytes, as file systems have it


class ModelFolder:
    """What `save_pretrained` writes; every other file in the folder is ignored."""

    def recognises(self, place: Path) -> bool:
        """Whether it is a folder, and none of an adapter."""
        return place.is_dir() and not Adapter().recognises(place)

    def contents(self, place: Path, most: int = MAX_TENSORS) -> Contents:
        """Return the tensors of the one file, or of all shards once all of them are there."""
        if (place / INDEX).exists():
            return Contents.whole(self._sharded(place, most), _config(place))
        if (place / ONE_FILE).exists():
            return Contents.whole(layout_of([place / ONE_FILE], most), _config(place))
        shards = sorted(path.name for path in place.glob("*-of-*.safetensors"))
        if not shards:
            refuse_never_read(place)
            _refuse_others(place)
        raise Busy(f"waits for {INDEX}" if shards else f"waits for {ONE_FILE} or {INDEX}")

    def _sharded(self, place: Path, most: int) -> Layout:
        weight_map = _weight_map(place / INDEX, most)
        shards = sorted(set(weight_map.values()))
        missing = [shard for shard in shards if not (place / shard).exists()]
        if missing:
            raise Busy(f"waits for shard {missing[0]} ({len(missing)} of {len(shards)} are missing)")
        if len(shards) > MAX_SHARDS:
            raise _bad_index(f"{len(shards)} shards, more than {MAX_SHARDS}")
        layout = layout_of([place / shard for shard in shards], most)
        strangers = [name for name, info in layout.tensors.items() if weight_map.get(name) != Path(info.file).name]
        lost = [name for name in weight_map if name not in layout.tensors]
        if strangers or lost:
            wrong = f"'{shown((strangers or lost)[0])}' not where {INDEX} says ({len(strangers) + len(lost)} such)"
            raise _bad_index(wrong)
        return layout


def _refuse_others(place: Path) -> None:
    """Refuse weights under a name that no loader of full models looks for."""
    others = sorted(path.name for path in place.glob("*.safetensors") if path.name != ONE_FILE)
    if others:
        found = f"{shown(others[0])}, and neither {ONE_FILE} nor {INDEX}"
        next_step = f"if it is the whole model, call it {ONE_FILE}"
        raise Refused(Reason("unknown-format", found, f"a file {ONE_FILE}, or shards with an index", next_step))


def _config(place: Path) -> dict[str, object]:
    """Return its config.json; what cannot be read tells nothing."""
    try:
        return read_json(place / CONFIG)
    except (Busy, Refused):
        return {}


def _weight_map(path: Path, most: int) -> dict[str, str]:
    """Return {weight name: shard} of at most so many weights, every shard the plain name of a weight file."""
    raw = read_bounded(path, MAX_HEADER)
    try:
        weight_map = _parse(raw, most)
    except (ValueError, RecursionError) as error:
        if not raw.rstrip().endswith(b"}"):
            raise Busy(f"waits for {INDEX} to be whole") from None
        raise _bad_index(f"what cannot be read ({error})") from None
    for shard in set(weight_map.values()):
        if not _is_plain(shard):
            raise _bad_index(f"the shard name '{shown(shard)}'")
    return weight_map


def _parse(raw: bytes, most: int) -> dict[str, str]:
    text, weight_map = JsonText(raw), None
    for key in text.members():
        if key == "weight_map":
            weight_map = text.strings(most)
        else:
            text.skip()
    text.end()
    if weight_map is None:
        raise ValueError("no weight_map")
    return weight_map


def _is_plain(shard: str) -> bool:
    """Whether it names a weight file in the same folder, that a scan would see."""
    plain = shard.isprintable() and not {"/", "\\"} & set(shard) and not shard.startswith(".")
    return plain and shard.endswith(".safetensors") and len(shard.encode()) <= MAX_SHARD_NAME


def _bad_index(found: str) -> Refused:
    expected = f"a {INDEX} of plain file names, and each weight in the shard that it names"
    return Refused(Reason("bad-index", found, expected, "save the checkpoint again into an empty folder"))
