"""The front matter of a model card: YAML between two lines of dashes, read with distrust and written by a dumper."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from ..state.errors import MergdError
from ..state.headers import read_bounded
from .links import link_elsewhere

LARGEST = 2**20  # bytes of a card that is read
MOST = 2**15  # characters of its front matter: YAML can make much of little
WORD = re.compile(r"[\w.+-]{1,60}", re.ASCII)  # a licence, a task: as the Hub writes them
_BLOCK = re.compile(r"\s*---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(\r?\n|$)", re.DOTALL)


def with_front_matter(values: Mapping[str, Any], text: str) -> str:
    """Return a card: the values as front matter, then the text."""
    dumped = yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True, default_flow_style=False)
    return f"---\n{dumped}---\n\n{text}"


def front_matter_in(folder: Path | None) -> dict[str, Any]:
    """Return what the card in a folder says of its model; nothing where there is none, or none that can be read."""
    if folder is None:
        return {}
    try:
        block = _BLOCK.match(read_bounded(folder / "README.md", LARGEST).decode())
        values = yaml.safe_load(block[1]) if block and len(block[1]) <= MOST else {}
    except (MergdError, OSError, ValueError, RecursionError, yaml.YAMLError):
        return {}
    return values if isinstance(values, dict) else {}


def licence_in(folder: Path) -> str | None:
    """Return the licence that the card in a stranger's folder claims, if it claims one in a word."""
    elsewhere = link_elsewhere(folder, [str(folder / "README.md")])
    return None if elsewhere else word_of(front_matter_in(folder), "license")


def word_of(values: Mapping[str, Any], key: str) -> str | None:
    """Return what a card says in a word that the Hub would take."""
    value = values.get(key)
    return value if isinstance(value, str) and WORD.fullmatch(value) else None
