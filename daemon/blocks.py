"""Blocks: how the weights are cut for a pass over them, how much memory each block takes, and how many threads it gets."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

from ..plugins.rules._matrices import is_matrix, sides
from ..state.records import Weight
from .base import COPIES, Rows, float32_bytes, row_blocks
from .machine import Machine, settle_threads
from .method import Method
from .overlapping import Job

OTHERS, PER_SLOT = (
    6,
    3,
)  # blocks that are alive at once: the weight, what is made of it; of a slot, the old, the term, the new
UNDER_WAY = 4  # blocks at once, at least, that the memory is to have room for
LARGEST = 48 * 2**20  # bytes that are alive of one block of rows: more would leave the processor's cache no better off
LONG_SIDE = 2048  # the short side from which on a matrix gets all threads, and nothing else is under way beside it


def jobs_of(weights: Iterable[Weight], method: Method, machine: Machine, ranks: Mapping[str, int]) -> Iterator[Job]:
    """Yield the blocks of all weights, in order. ranks: of those whose slot is kept as two factors."""
    for w in weights:
        if w.name in ranks:
            yield Job(w, None, min(machine.memory, OTHERS * 4 * ranks[w.name] * sum(w.shape)))
            continue
        blocks, whole = blocks_of(w, method, machine.memory), working_bytes(w, method)
        alone = machine.threads > 1 and wants_all_threads(w, method)
        for number, rows in enumerate(blocks):
            nbytes = whole * (rows[1] - rows[0]) // w.shape[0] if rows else whole
            yield Job(w, rows, nbytes, first=not number, last=number == len(blocks) - 1, alone=alone)


def blocks_of(w: Weight, method: Method, memory: int) -> list[Rows]:
    """Return the blocks of rows that a weight goes by in, so small that several of them at once fit the memory."""
    if not method.rowwise(w):
        return [None]
    return row_blocks(w.shape, -(-working_bytes(w, method) // COPIES), min(memory // UNDER_WAY, LARGEST))


def wants_all_threads(w: Weight, method: Method) -> bool:
    """Whether a weight's products are so large that all threads share in each; by shape alone, for it can change last bits."""
    return is_matrix(w) and not method.rowwise(w) and min(sides(w)[1:]) >= LONG_SIDE


@contextmanager
def threads_for(w: Weight, method: Method, threads: int) -> Iterator[None]:
    """Give the products with a weight as many threads as it is to have, and one afterwards."""
    settle_threads(threads if wants_all_threads(w, method) else 1)
    try:
        yield
    finally:
        settle_threads(1)


def working_bytes(w: Weight, method: Method) -> int:
    """Return the most bytes that are alive at once of a weight while it is folded and read out, beside torch itself."""
    kept = sum(spec.nbytes for statistic in method.keeps(w) for spec in statistic.slots(w).values())
    return OTHERS * float32_bytes(w.shape) + PER_SLOT * kept
