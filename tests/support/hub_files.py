"""What a test pushes to a Hub, and how it looks at what a client fetched."""

from pathlib import Path

CARD = b"""---
base_model: org/base
base_model_relation: merge
library_name: transformers
tags: [merged]
---
# A model
"""
WEIGHTS = bytes(range(256)) * 40
FILES = {"config.json": b"{}\n", "model.safetensors": WEIGHTS, "nested/deeper/tokens.txt": b"a\nb\n", "README.md": CARD}


def content(folder: str) -> dict[str, bytes]:
    """Return the files that a client fetched."""
    found = {str(path.relative_to(folder)): path for path in Path(folder).rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in found.items() if not name.startswith(".cache")}
