"""Runs what is asked for in processes of their own, niced, with one thread each; what fails is told, and the rest goes on."""

import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from pathlib import Path
from typing import Any

import torch

from .folding import FORKING, PRELOADED
from .measuring import Job, measure
from .reference import NotInstalled
from .training import Trained, missing

NICE = 10


def train(where: Path, jobs: Sequence[Job], processes: int) -> bool:
    """Train what the jobs need and is not there: the bases, then what needs them. Returns whether all went well."""
    bases, tuned = missing(where, ((job.set, job.draw) for job in jobs))
    return all(_in_processes(_train, {_told(*job): job for job in some}, processes) for some in (bases, tuned))


def measure_all(jobs: Sequence[Job], processes: int) -> bool:
    """Measure what is not there yet. Returns whether all went well."""
    named = {f"{job.path.parent.parent.name} {job.path.parent.name} {job.method.name}": (job,) for job in jobs}
    return _in_processes(_measure, {name: job for name, job in named.items() if not job[0].is_done}, processes)


def _told(trained: Trained, what: str) -> str:
    return f"{trained.kind} {trained.seed} {what}"


def _train(trained: Trained, what: str) -> str:
    trained.make(what)
    return ""


def _measure(job: Job) -> str:
    try:
        measure(job)
    except NotInstalled as why:
        return f"left out: {why}"
    return ""


def _settle() -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.nice(NICE)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)


def _end_with_parent() -> None:
    """A worker would go on with all that is queued, long after what asked for it was killed."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _timed(do: Callable[..., str], words: Sequence[Any]) -> tuple[float, str]:
    start = time.monotonic()
    said = do(*words)
    return time.monotonic() - start, said


def _in_processes(do: Callable[..., str], named: dict[str, Any], processes: int) -> bool:
    """Do all, some at a time, and say on stderr what was done; returns whether all went well."""
    FORKING.set_forkserver_preload(PRELOADED)
    failed = 0
    with ProcessPoolExecutor(processes, mp_context=FORKING, initializer=_settle) as pool:
        waiting = {pool.submit(partial(_timed, do), words): name for name, words in named.items()}
        for count, done in enumerate(as_completed(waiting), 1):
            if error := done.exception():
                failed += 1
                said = f"failed: {type(error).__name__}: {error}"
            else:
                seconds, more = done.result()
                said = f"{seconds:.1f} s {more}".rstrip()
            print(f"{count}/{len(waiting)} {do.__name__[1:]} {waiting[done]}: {said}", file=sys.stderr, flush=True)
    return not failed
