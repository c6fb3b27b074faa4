"""Blocks: how the weights are cut for a pass over them, how much memory each block takes, and how many threads it gets."""

from collections.abc import Iterable, Iterator, Mapping
from math import inf

from ..plugins.rules._matrices import is_matrix, sides
from ..plugins.rules.interface import Rule, Statistic
from ..plugins.rules.interface import working_bytes as usual_bytes
from ..state.errors import Misconfigured
from ..state.prepared import Prepared
from ..state.records import Weight
from .base import COPIES, Base, Rows, float32_bytes, row_blocks
from .device import resolve
from .machine import Machine
from .method import Method
from .overlapping import Job
from .settings import AT_LEAST, Settings
from .slots import reads_slot

PRODUCTS = 2  # of what is prepared, beside itself
FACTORS = 8  # copies of a weight's two factors that are alive at once
UNDER_WAY = 4  # blocks at once, at least, that the memory is to have room for
LARGEST = 12 * 2**20  # bytes that are alive of one block of rows: more would leave the processor's cache no better off
LONG_SIDE = 2048  # the short side from which on a matrix gets all threads, and nothing else is under way beside it


def jobs_of(
    weights: Iterable[Weight], method: Method, machine: Machine, ranks: Mapping[str, int], prepared: Prepared
) -> Iterator[Job]:
    """Yield the blocks of all weights, in order. ranks: of those whose slot is kept as two factors."""
    known: dict[object, tuple[list[Rows], int, bool]] = {}  # of weights that are alike: most have many like them
    for w in weights:
        if w.name in ranks:
            yield Job(w, None, min(machine.memory, FACTORS * 4 * ranks[w.name] * sum(w.shape)))
            continue
        alike = w.shape, w.kind, method.keeps(w)
        if alike not in known:
            alone = machine.threads > 1 and wants_all_threads(w, method)
            known[alike] = blocks_of(w, method, machine.memory), working_bytes(w, method), alone
        blocks, whole, alone = known[alike]
        for number, rows in enumerate(blocks):
            part = whole * (rows[1] - rows[0]) // w.shape[0] if rows else whole
            nbytes = part if rows else int(min(part, _ready_bytes(w, method, prepared)))
            yield Job(w, rows, nbytes, first=not number, last=number == len(blocks) - 1, alone=alone)


def blocks_of(w: Weight, method: Method, memory: int) -> list[Rows]:
    """Return the blocks of rows that a weight goes by in, so small that several of them at once fit the memory."""
    if not method.rowwise(w):
        return [None]
    return row_blocks(w.shape, -(-working_bytes(w, method) // COPIES), min(memory // UNDER_WAY, LARGEST))


def wants_all_threads(w: Weight, method: Method) -> bool:
    """Whether a weight's products are so large that all threads share in each; by shape alone, for it can change last bits."""
    return is_matrix(w) and not method.rowwise(w) and min(sides(w)[1:]) >= LONG_SIDE


def threads_for(w: Weight, method: Method, threads: int) -> int:
    """Return how many threads the products with a weight get, of so many."""
    return threads if wants_all_threads(w, method) else 1


def working_bytes(w: Weight, method: Method) -> int:
    """Return the most bytes that are alive at once of a weight while it is folded and read out, beside torch itself."""
    specs = [spec for statistic in method.keeps(w) for spec in statistic.slots(w).values()]
    news = float32_bytes(w.shape) * (2 if any(spec.dtype == "F64" for spec in specs) else 1)
    readout = 0 if reads_slot(method, w) else float32_bytes(w.shape)
    parts: tuple[Rule | Statistic, ...] = (method.rule, *method.keeps(w))
    aside = max(_aside(part, w) for part in parts)
    return news + 2 * sum(spec.nbytes for spec in specs) + readout + aside


def _ready_bytes(w: Weight, method: Method, prepared: Prepared) -> float:
    """Return the same of a weight for which all is prepared: then nothing is decomposed; it is infinite for others."""
    sizes = [prepared.size(w, statistic) for statistic in method.keeps(w)]
    if not all(sizes) or not reads_slot(method, w):
        return inf
    kept = sum(spec.nbytes for statistic in method.keeps(w) for spec in statistic.slots(w).values())
    return float32_bytes(w.shape) + 2 * kept + (1 + PRODUCTS) * sum(sizes)


def _aside(part: Rule | Statistic, w: Weight) -> int:
    """Return what a fold, or a read-out, takes besides; what does not say takes what most formulas do."""
    return part.working(w) if hasattr(part, "working") else usual_bytes(w)


def machine_of(settings: Settings, base: Base, method: Method) -> Machine:
    """Return what a pass over the weights may take; a memory of 0 is as much as the largest of them needs.

    Raises Misconfigured where it is less than that.
    """
    device, needs = resolve(settings.device), {_kind(w): w for w in base.weights}
    need, most = max(((_least(w, method), w) for w in needs.values()), key=lambda pair: pair[0])
    if not settings.memory:
        return Machine(max(AT_LEAST, need), settings.threads, device)
    if settings.memory < need:
        shape, least = " x ".join(map(str, most.shape)), f"{-(-need // 10**6)}MB"
        found = f"memory is {settings.memory.human_readable(decimal=True)}, and {most.name}, {shape}, takes {least} under {method.name}"
        raise Misconfigured(found, f"set memory to {least} or more, or leave it out: then it is as much as that takes")
    return Machine(int(settings.memory), settings.threads, device)


def _least(w: Weight, method: Method) -> int:
    """Return the bytes that the smallest block of a weight takes."""
    rows = max(1, w.shape[0]) if w.shape and method.rowwise(w) else 1
    return -(-working_bytes(w, method) // rows)


def _kind(w: Weight) -> tuple[object, ...]:
    """Return what decides how much a weight takes."""
    return w.shape, w.kind
