"""How long a rollback takes, for models of any size: the published file of a version is grown with a hole.

Prints one line of JSON for each size: the longest of some rollbacks, head and link moved, in seconds.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

from memory import make_model, mergd

from mergd.daemon.requests import Rollback, rollback
from mergd.state.history import History
from mergd.state.manifests import read_manifest, text_of
from mergd.state.store import Store
from mergd.state.writing import Planned

ROUNDS = 20


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gb", type=float, nargs="+", default=[0.001, 1, 100, 1000])
    sizes = parser.parse_args().gb
    with tempfile.TemporaryDirectory(dir=".") as name:
        work = Path(name)
        planned = [Planned("a.proj.weight", "F32", (64, 64))]
        make_model(work / "base", 0, planned)
        for seed in (1, 2):
            make_model(work / "drop" / f"fine-tune-{seed}", seed, planned)
        config = work / "mergd.toml"
        mergd("init", "--base", str(work / "base"), "--watch", str(work / "drop"), "--state", str(work / "state"),
              "--existing", "fold", "--config", str(config))  # fmt: skip
        mergd("run", "--once", "-c", str(config))
        store = Store(work / "state")
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
