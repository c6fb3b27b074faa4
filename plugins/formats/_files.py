"""What the formats share: JSON with bounds, and the kinds of weights that are never read."""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ...state.errors import Busy, Refused
from ...state.headers import read_bounded
from ...state.records import Reason

MAX_JSON = 4 * 2**20  # bytes
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "adapter_model.bin")
CONVERT = (
    'convert it where you trust its maker: python -c "import torch, safetensors.torch as s; s.save_file({k: v.clone() '
    "for k, v in torch.load('FILE', weights_only=True).items()}, 'model.safetensors', {'format': 'pt'})\""
)


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file of at most MAX_JSON bytes, {} where there is no file.

    Raises Busy while it cannot be read as one: it is still being written. Raises Refused where it is too large.
    """
    if not path.exists():
        return {}
    data = read_bounded(path, MAX_JSON)
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        raise Busy(f"waits for {path.name} to be whole") from None
    if not isinstance(value, dict):
        raise Refused(
            Reason("bad-json", f"{path.name} that is no object", "a JSON object", "save the checkpoint again")
        )
    return value


def refuse_pickles(place: Path, patterns: Iterable[str] = PICKLES) -> None:
    """Refuse a folder whose weights are pickles, or of a kind that only other programs read."""
    pickles = sorted({path.name for pattern in patterns for path in place.glob(pattern) if _holds_weights(path.name)})
    if pickles:
        raise Refused(pickle_reason(pickles[0]))
    if ggufs := sorted(path.name for path in place.glob("*.gguf")):
        raise Refused(gguf_reason(ggufs[0]))


def _holds_weights(name: str) -> bool:
    """Whether it is no trainer's own state, which lies beside the weights of a run."""
    return not re.match(r"(optimizer|scheduler|scaler|rng_state|training_args|random_states)", name)


def pickle_reason(name: str) -> Reason:
    """Return why a pickle is refused."""
    next_step = CONVERT.replace("FILE", name)
    return Reason("pickle", f"{name}, a pickle, which can run code and is never read", "safetensors", next_step)


def gguf_reason(name: str) -> Reason:
    """Return why a GGUF file is refused."""
    return Reason(
        "quantised", f"{name}, GGUF weights", "safetensors in floating point", "drop the model it was made from"
    )
