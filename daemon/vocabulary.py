"""Vocabularies of two sizes: do the tokens of a checkpoint have the numbers that they have in the base model?"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..state.errors import MergdError
from ..state.headers import open_regular

MAX_TOKENIZER = 40 * 2**20  # bytes


def ids_agree(base: Path, checkpoint: Path, rows: int) -> bool:
    """Whether both folders' tokenizers give the numbers below `rows` to the same tokens.

    False where one of them has no tokenizer that can be read: then nothing is known.
    """
    ours, theirs = tokens(base), tokens(checkpoint)
    if not ours or not theirs:
        return False
    return all(theirs.get(number) == token for number, token in ours.items() if number < rows)


def tokens(folder: Path) -> dict[int, str]:
    """Return {number: token} of the tokenizer in a folder, {} if there is none that can be read."""
    fast = _json(folder / "tokenizer.json")
    if fast:
        return _numbered(fast)
    plain = _json(folder / "vocab.json")
    more = _json(folder / "added_tokens.json")
    if plain:
        return {number: token for token, number in (plain | more).items() if type(number) is int}
    return dict(enumerate(_text(folder / "vocab.txt").splitlines()))


def _numbered(fast: Mapping[str, Any]) -> dict[int, str]:
    """Return the tokens of a tokenizer.json: its model's vocabulary, as a mapping or a list, and the added ones."""
    try:
        vocabulary = fast["model"]["vocab"]
        if isinstance(vocabulary, dict):
            found = {number: token for token, number in vocabulary.items()}
        else:
            found = {number: token for number, (token, _) in enumerate(vocabulary)}
        return found | {added["id"]: added["content"] for added in fast.get("added_tokens", [])}
    except (KeyError, TypeError, ValueError):
        return {}


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(_text(path))
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _text(path: Path) -> str:
    """Return a file's text, "" where it is absent, larger than any tokenizer, or no text."""
    try:
        with open(open_regular(path), "rb") as file:
            data = file.read(MAX_TOKENIZER + 1)
        return data.decode() if len(data) <= MAX_TOKENIZER else ""
    except (MergdError, OSError, ValueError):
        return ""
