"""What the formats share: JSON with bounds, and the kinds of weights that are never read."""

import json
import re
from pathlib import Path
from typing import Any

from ...state.errors import Busy, Refused
from ...state.headers import read_bounded
from ...state.records import Reason
from ...state.wording import quoted, shown

MAX_JSON = 4 * 2**20  # bytes
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
GGUF = ".gguf"
# What lies beside the weights of a training, and holds none.
TRAINERS = re.compile(r"(optimizer|scheduler|scaler|rng_state|random_states|training_args|trainer_state).*")
CONVERT = (
    'convert it where you trust its maker: python -c "import sys, torch, safetensors.torch as s; s.save_file({k: v.clone() '
    "for k, v in torch.load(sys.argv[1], weights_only=True).items()}, 'model.safetensors', {'format': 'pt'})\" "
)
FOREIGN = (".h5", ".msgpack", ".ot")  # weights of other frameworks


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file of at most MAX_JSON bytes, {} where there is no file.

    Raises Busy while it cannot be read as one: it is still being written. Raises Refused where it is too large.
    """
    if not path.exists():
        return {}
    data = read_bounded(path, MAX_JSON)
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        if not data.rstrip().endswith((b"}", b"]")):
            raise Busy(f"waits for {path.name} to be whole") from None
        found = f"{path.name} that cannot be read ({shown(error)})"
        raise Refused(Reason("bad-json", found, "a JSON object", "save the checkpoint again")) from None
    if not isinstance(value, dict):
        raise Refused(
            Reason("bad-json", f"{path.name} that is no object", "a JSON object", "save the checkpoint again")
        )
    return value


def never_read(name: str) -> bool:
    """Whether a file holds weights of a kind that is never read, to judge by its name."""
    return name.endswith((*PICKLES, *FOREIGN, GGUF)) and not TRAINERS.fullmatch(name)


def refuse_never_read(place: Path, begins: str = "") -> None:
    """Refuse a folder for the first file in it whose weights are never read, of those whose names begin so."""
    found = sorted(path.name for path in place.iterdir() if path.name.startswith(begins) and never_read(path.name))
    if found:
        raise Refused(never_read_reason(found[0]))


def never_read_reason(name: str) -> Reason:
    """Return why such a file is refused, and what to drop instead."""
    if name.endswith(GGUF):
        found, expected = f"{shown(name)}, GGUF weights", "safetensors in floating point"
        return Reason("quantised", found, expected, "drop the model it was made from")
    if name.endswith(FOREIGN):
        found, next_step = f"{shown(name)}, weights of another framework", "save it as safetensors"
        return Reason("unknown-format", found, "safetensors", next_step)
    found = f"{shown(name)}, a pickle, which can run code and is never read"
    return Reason("pickle", found, "safetensors", CONVERT + quoted(name))
