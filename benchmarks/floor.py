"""The machine's own limits, each in a process of its own: copying bytes, and OPCM's products by the BLAS alone.

    python floor.py copy FROM TO BYTES_READ BYTES_WRITTEN
    python floor.py products ROWS COLUMNS

Prints one line of JSON: seconds of the copy; or the CPU seconds of what OPCM needs of one matrix, on one thread.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

BLOCK = 1 << 23  # bytes
REPEATS = 3
ALPHA = 0.5  # OPCM's default


def copy(source: Path, target: Path, read: int, written: int) -> dict[str, float]:
    """Read so many bytes, of a file from its beginning again and again, and write and sync so many."""
    buffer = memoryview(bytearray(BLOCK))
    cpu, began = time.process_time(), time.perf_counter()
    with source.open("rb", buffering=0) as here, target.open("wb", buffering=0) as there:
        while read > 0 or written > 0:
            if read > 0:
                got = here.readinto(buffer[: min(BLOCK, read)])
                read -= got or 0
                if not got:
                    here.seek(0)
            if written > 0:
                written -= there.write(buffer[: min(BLOCK, written)])
        os.fsync(there.fileno())
    return {"wall": time.perf_counter() - began, "cpu": time.process_time() - cpu}


def products(rows: int, columns: int) -> dict[str, float]:
    """Decompose a random matrix by the Gram matrix of its short side, and project another one."""
    import torch

    torch.set_num_threads(1)
    A, D = torch.randn(rows, columns), torch.randn(rows, columns)
    X = (A if rows <= columns else A.T).double()
    decomposing, (values, vectors) = seconds(lambda: torch.linalg.eigh(X @ X.T))
    sigmas = values.flip(0).clamp(min=0).sqrt()
    rank = int((sigmas.cumsum(0) <= ALPHA * sigmas.sum()).sum()) + 1
    short = vectors.flip(1)[:, :rank]
    long = X.T @ short / sigmas[:rank]
    U, V = (short.float(), long.float()) if rows <= columns else (long.float(), short.float())
    projecting, _ = seconds(lambda: D - U @ (U.T @ D @ V) @ V.T)
    return {"decomposing": decomposing, "projecting": projecting, "rank": rank}


def seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    """Return the least CPU seconds of some repeats, after one that warms up, and the result."""
    found = work()
    least = float("inf")
    for _ in range(REPEATS):
        began = time.process_time()
        found = work()
        least = min(least, time.process_time() - began)
    return least, found


def main() -> None:
    """Measure, and print."""
    what, *words = sys.argv[1:]
    if what == "copy":
        result = copy(Path(words[0]), Path(words[1]), int(words[2]), int(words[3]))
    else:
        result = products(int(words[0]), int(words[1]))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
