"""How long a rollback takes, for models of any size: the published file of a version is grown with a hole.

Prints one line of JSON for each size: the longest of some rollbacks, head and link moved, in seconds.
"""

import argparse
import json
import os
import time

from commands import Merge, work_folder
from models import make_model

from mergd.daemon.requests import Rollback, rollback
from mergd.state.history import History
from mergd.state.manifests import read_manifest, text_of
from mergd.state.store import Store

ROUNDS = 20


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gb", type=float, nargs="+", default=[0.001, 1, 100, 1000])
    sizes = parser.parse_args().gb
    shapes = {"a.proj.weight": (64, 64)}
    with work_folder() as work:
        merge = Merge(work, make_model(work / "base", 0, shapes), settings={"keep_last": 2})
        for seed in (1, 2):
            merge.drop(make_model(work / f"fine-tune-{seed}", seed, shapes))
        merge.run_once(of=2)
        store = Store(merge.state)
        for gb in sizes:
            grow(store, 1, int(gb * 1e9))
            print(json.dumps({"gb": gb, "seconds": round(measure(store), 4)}))


def grow(store: Store, number: int, nbytes: int) -> None:
    """Let a version have a published file of this size, as if it had been written so."""
    path = store.model(number) / "model.safetensors"
    os.truncate(path, nbytes)
    manifest = read_manifest(store.manifest_path(number))
    (entry,) = [file for file in manifest["model"] if file["name"] == path.name]
    entry["size"] = nbytes
    store.manifest_path(number).write_bytes(text_of(manifest))
    with History(store.database, write=True) as history:
        history.checks.sound(number, store.stamps(number))


def measure(store: Store) -> float:
    """Return the seconds of the longest of some rollbacks to the large version."""
    longest = 0.0
    with History(store.database, write=True) as history:
        for _ in range(ROUNDS):
            began = time.perf_counter()
            rollback(Rollback(version="v1"), history, store, [], "a benchmark")
            longest = max(longest, time.perf_counter() - began)
            rollback(Rollback(version="v2"), history, store, [], "a benchmark")
    return longest


if __name__ == "__main__":
    main()
