"""The machine: what torch and the allocator would else choose by it is fixed, and what is left is told."""

import ctypes
import os
import platform
import resource
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version

from ..state.errors import Misconfigured

BESIDE = 64  # files that a process has open anyway, with some to spare: a daemon has 18 or 19
RETURNED = 32 * 2**20  # bytes: a block of at least this size goes back to the system; the most that glibc takes
SWITCH = 0.0005  # seconds that a thread may hold the interpreter while others wait to hand something over
KEPT_FREE = 64 * 2**20  # bytes of free memory that are kept for the next blocks
LAST = 19  # the lowest priority, for which the kernel's schedulers give time that nobody else wants
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8  # glibc, malloc.h
LIBC = ctypes.CDLL(None)


@dataclass(frozen=True)
class Machine:
    """What a pass over the weights may take of the machine."""

    memory: int  # bytes of working buffers
    threads: int = 1  # of one product with a large matrix; of small ones so many are under way at once
    device: str = "cpu"  # where task vectors are folded: "cpu", "cuda:0"


def settle_threads(threads: int) -> None:
    """Fix torch's threads for the calling thread: another number can change the last bit of a matrix product."""
    import torch

    torch.set_num_threads(threads)
    torch.backends.mkldnn.set_flags(False)  # type: ignore[no-untyped-call]  # fails under MemoryDenyWriteExecute


@contextmanager
def with_threads(threads: int) -> Iterator[None]:
    """Give the calling thread so many of torch's, and one afterwards."""
    settle_threads(threads)
    try:
        yield
    finally:
        settle_threads(1)


def be_last() -> None:
    """Let the calling thread have what processor time, and with some schedulers what disk time, others leave.

    Not where that is forbidden, as in the service's unit: then it has its turn like any other.
    """
    with suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LAST)


def settle_process() -> None:
    """Have threads take turns often, and glibc use the memory of one weight for the next.

    Pages that come from the system anew cost more than most sums. All threads share one heap, of which little is kept while it is free, and the largest blocks go back at once: by default
    each thread has a heap of its own, where blocks of all sizes pile up.
    """
    sys.setswitchinterval(SWITCH)
    os.environ.setdefault("MKL_DISABLE_FAST_MM", "1")  # else each thread keeps the buffers of its largest product
    mallopt = getattr(LIBC, "mallopt", None)  # another C library may have none
    if mallopt is not None:
        for option, value in ((M_MMAP_THRESHOLD, RETURNED), (M_TRIM_THRESHOLD, KEPT_FREE), (M_ARENA_MAX, 1)):
            mallopt(option, value)


def allow_open_files(number: int) -> None:
    """Let this process have so many files open beside what it has open anyway, as far as it may say so itself.

    Raises Misconfigured where it may not: before anything is opened, and nothing is written.
    """
    need = number + BESIDE
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if need > hard != resource.RLIM_INFINITY:
        hint = "raise the limit: ulimit -Hn, or LimitNOFILE= in the unit; or save checkpoints in fewer files"
        raise Misconfigured(f"{number} files are to be open at once, and {hard - BESIDE} are allowed", hint)
    if need > soft != resource.RLIM_INFINITY:
        resource.setrlimit(resource.RLIMIT_NOFILE, (need, hard))


def made_on() -> dict[str, str]:
    """Return what may change the last bit of a result, besides what is pinned."""
    import torch

    return {
        "mergd": version("mergd"),
        "torch": torch.__version__,
        "processor": platform.machine(),
        "capability": torch.backends.cpu.get_cpu_capability(),
    }


def trim_memory() -> None:
    """Have glibc give back the free pages between small blocks too: else they pile up from fold to fold."""
    trim = getattr(LIBC, "malloc_trim", None)
    if trim is not None:
        trim(0)
