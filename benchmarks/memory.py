"""Peak memory, time and bookkeeping of a fold, measured on the real command line.

A base model of small matrices and one large embedding is made, two fine-tunes of it are folded by `mergd run --once`,
and the peak resident memory of that process is printed, with the time beside that of copying the same bytes, and what a
version takes besides its weights: the manifest, the database.
"""

import argparse
import json
import os
import resource
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from mergd.state.writing import Planned, Writer

WIDTH = 1024
EMBEDDING_ROWS = 250_000  # x 1024 float32: 1.02 GB


def shapes(gigabytes: float, rows: int) -> Iterator[Planned]:
    """Yield the weights of a model: matrices of 4 MB with a bias each, and one embedding of so many rows."""
    if rows:
        yield Planned("embed_tokens.weight", "F32", (rows, WIDTH))
    for i in range(round(gigabytes * 1e9 / (4 * WIDTH * WIDTH))):
        yield Planned(f"layers.{i}.proj.weight", "F32", (WIDTH, WIDTH))
        yield Planned(f"layers.{i}.proj.bias", "F32", (WIDTH,))


def make_model(folder: Path, seed: int, planned: list[Planned]) -> None:
    """Write a model: a base from its own seed, and small steps from that base by another."""
    folder.mkdir(parents=True)
    with Writer(folder, "model", planned, {"format": "pt"}) as writer:
        for number, (name, shape) in enumerate((p.name, p.shape) for p in planned):
            for start in range(0, shape[0], 8192):
                rows = (min(8192, shape[0] - start), *shape[1:])
                base = torch.randn(rows, generator=torch.Generator().manual_seed(number * 1000 + start))
                step = torch.randn(rows, generator=torch.Generator().manual_seed(seed * 10**6 + number * 1000 + start))
                writer.write(name, base + 0.01 * step if seed else base)
        writer.finish()


def mergd(*words: str) -> float:
    """Run a command of mergd and return its seconds."""
    began = time.monotonic()
    subprocess.run([sys.executable, "-m", "mergd", *words], check=True)
    return time.monotonic() - began


def peak_mb(*words: str) -> float:
    """Run a command of mergd and return the peak resident memory of that process alone."""
    process = subprocess.Popen([sys.executable, "-m", "mergd", *words], stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"mergd {words[0]} ended with {process.returncode}")
    return used.ru_maxrss / 1024


def copy_seconds(model: Path, target: Path) -> float:
    """Return the seconds that writing and syncing the same bytes takes."""
    began = time.monotonic()
    shutil.copy(model, target)
    with target.open("rb+") as file:
        os.fsync(file.fileno())
    seconds = time.monotonic() - began
    target.unlink()
    return seconds


def kilobytes(state: Path, versions: int) -> dict[str, float]:
    """Return the sizes of the newest manifest, of status.json, and of the database for each version."""
    with sqlite3.connect(state / "mergd.db") as database:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        (pins,) = database.execute("select sum(length(value)) from pins").fetchone()
    database.close()
    sizes = {
        "manifest": (state / "versions" / f"{versions:06d}" / "manifest.json").stat().st_size,
        "status": (state / "status.json").stat().st_size,
        "database_per_version": ((state / "mergd.db").stat().st_size - pins) / versions,
        "pins": pins,
    }
    return {name: round(size / 1e3, 1) for name, size in sizes.items()}


def main() -> None:
    """Measure, and print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gb", type=float, default=2.0, help="gigabytes of small matrices")
    parser.add_argument("--rows", type=int, default=EMBEDDING_ROWS, help="rows of the embedding, 4 kB each")
    parser.add_argument(
        "--matrix", type=int, nargs=2, metavar=("ROWS", "COLUMNS"), help="one matrix is the whole model"
    )
    parser.add_argument("--tensors", type=int, help="so many matrices of 8 kB are the whole model")
    parser.add_argument("--folds", type=int, default=2)
    parser.add_argument("--rule", default="opcm")
    parser.add_argument("--remerge", nargs="*", default=[], metavar="RULE", help="merge anew by these, each on its own")
    parser.add_argument("--limit-mb", type=float, default=700.0, help="exit 1 if the peak is above")
    arguments = parser.parse_args()
    planned = list(shapes(arguments.gb, arguments.rows))
    if arguments.matrix:
        planned = [Planned("layer.proj.weight", "F32", tuple(arguments.matrix))]
    if arguments.tensors:
        names = (f"model.layers.{i // 100}.mlp.experts.{i % 100}.proj.weight" for i in range(arguments.tensors))
        planned = [Planned(name, "F32", (32, 64)) for name in names]
    with tempfile.TemporaryDirectory(dir=".") as name:
        work = Path(name)
        for seed in range(arguments.folds + 1):
            make_model(work / ("base" if seed == 0 else f"drop/fine-tune-{seed}"), seed, planned)
        copying = copy_seconds(work / "base" / "model.safetensors", work / "copy")
        config = str(work / "mergd.toml")
        mergd("init", "--base", str(work / "base"), "--watch", str(work / "drop"), "--state", str(work / "state"),
              "--existing", "fold", "--rule", arguments.rule, "--config", config)  # fmt: skip
        initial = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
        seconds = mergd("run", "--once", "-c", config)
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
        bookkeeping = kilobytes(work / "state", arguments.folds)
        log = [json.loads(line) for line in (work / "state" / "log.jsonl").read_text().splitlines()]
        remerges = {rule: round(peak_mb("remerge", "--rule", rule, "-c", config)) for rule in arguments.remerge}
    result = {
        "model_gb": sum(p.nbytes for p in planned) / 1e9,
        "folds": len(log),
        "peak_rss_mb": round(peak / 1024),
        "remerge_peak_rss_mb": remerges,
        "init_peak_rss_mb": round(initial / 1024),
        "seconds_per_fold": round(seconds / len(log), 1),
        "copy_seconds": round(copying, 1),
        "steps": log[0]["seconds"],
        "kilobytes": bookkeeping,
        "bytes_read_per_model_byte": round(log[0]["bytes_read"] / sum(p.nbytes for p in planned), 2),
    }
    print(json.dumps(result))
    sys.exit(0 if result["peak_rss_mb"] <= arguments.limit_mb else 1)


if __name__ == "__main__":
    main()
