"""Depth: how far into the network each weight lies, from 0 at its input to 1 at its output, by the weights' names alone."""

import re
from collections.abc import Iterable, Mapping

from ..state.records import Weight

BLOCK = re.compile(r"(?:^|\.)(\d+)(?:\.|$)")  # the first number in a name counts the blocks of a stack
LAST = re.compile(r"(^|[._])(lm_head|head|heads|classifier|pooler|score|output_projection|embed_out|final\w*|norm|ln_f|ln_post|post\w*norm|visual_projection)([._]|$)")  # fmt: skip


def depths(weights: Iterable[Weight]) -> Mapping[str, float]:
    """Return the depth of each weight: block i of n at i / (n - 1); heads and final norms at 1; all else at 0.

    Each stack of blocks counts for itself: an encoder's and a decoder's both go from 0 to 1.
    """
    names = [weight.name for weight in weights]
    blocks = {name: _block(name) for name in names}
    last: dict[str, int] = {}
    for stack, number in filter(None, blocks.values()):
        last[stack] = max(last.get(stack, 0), number)
    return {name: _depth(name, block, last) for name, block in blocks.items()}


def _block(name: str) -> tuple[str, int] | None:
    """Return the stack that a weight lies in, and the number of its block there."""
    found = BLOCK.search(name)
    return (name[: found.start(1)], int(found[1])) if found else None


def _depth(name: str, block: tuple[str, int] | None, last: Mapping[str, int]) -> float:
    if block is None:
        return 1.0 if LAST.search(name) else 0.0
    stack, number = block
    return number / last[stack] if last[stack] else 0.0
