"""Peak memory, time and bookkeeping of a fold, measured on the real command line.

A base model of small matrices and one large embedding is made, two fine-tunes of it are folded by `mergd run --once`,
and the peak resident memory of that process is printed, with the time beside that of copying the same bytes, and what a
version takes besides its weights: the manifest, the database.
"""

import argparse
import json
import sqlite3
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from commands import Merge, work_folder
from floor import copy
from models import Shapes, make_model, parameters, square_shapes

from mergd.daemon.base import outline
from mergd.daemon.blocks import machine_of
from mergd.daemon.configuration import read_settings
from mergd.daemon.method import method_of

WIDTH = 1024
EMBEDDING_ROWS = 250_000  # x 1024 float32: 1.02 GB
# An embedding larger than the memory setting, and the largest matrix of a Llama of 7 B parameters.
LLAMA: Shapes = {"embed_tokens.weight": (32_000, 4096), "layers.0.mlp.down_proj.weight": (4096, 11_008)}


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


def measure(
    work: Path, shapes: Shapes, folds: int = 2, rule: str = "opcm", remerge: Sequence[str] = ()
) -> dict[str, Any]:
    """Fold some fine-tunes of a model in one process, and merge them anew in others."""
    base = make_model(work / "base", 0, shapes)
    size = (base / "model.safetensors").stat().st_size
    copied = copy(base / "model.safetensors", work / "copy", size, size)
    (work / "copy").unlink()
    merge = Merge(work / "merge", base, rule)
    for seed in range(1, folds + 1):
        merge.drop(make_model(work / f"fine-tune-{seed}", seed, shapes))
    cost = merge.run_once(of=folds)
    log = merge.log()
    settings = read_settings(merge.config)
    return {
        "memory_mb": round(machine_of(settings, outline(str(base)), method_of(settings.method)).memory / 1e6),
        "model_gb": 4 * parameters(shapes) / 1e9,
        "folds": len(log),
        "peak_rss_mb": round(cost.rss),
        "init_peak_rss_mb": round(merge.init.rss),
        "seconds_per_fold": round(cost.wall / len(log), 1),
        "cpu_seconds_per_fold": round(cost.cpu / len(log), 1),
        "copy_seconds": round(copied["wall"], 1),
        "steps": log[0]["seconds"],
        "kilobytes": kilobytes(merge.state, folds),
        "bytes_read_per_model_byte": round(log[0]["bytes_read"] / 4 / parameters(shapes), 2),
        "remerge_peak_rss_mb": {by: round(merge.mergd("remerge", "--rule", by).rss) for by in remerge},
    }


def model(arguments: argparse.Namespace) -> Shapes:
    """Return the weights that the command line asks for."""
    if arguments.llama:
        return LLAMA
    if arguments.matrix:
        return {"layer.proj.weight": tuple(arguments.matrix)}
    if arguments.tensors:
        names = (f"model.layers.{i // 100}.mlp.experts.{i % 100}.proj.weight" for i in range(arguments.tensors))
        return dict.fromkeys(names, (32, 64))
    table = {"embed_tokens.weight": (arguments.rows, WIDTH)} if arguments.rows else {}
    return table | dict(square_shapes(arguments.gb, WIDTH))


def main() -> None:
    """Measure, and print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gb", type=float, default=2.0, help="gigabytes of small matrices")
    parser.add_argument("--rows", type=int, default=EMBEDDING_ROWS, help="rows of the embedding, 4 kB each")
    parser.add_argument(
        "--matrix", type=int, nargs=2, metavar=("ROWS", "COLUMNS"), help="one matrix is the whole model"
    )
    parser.add_argument("--tensors", type=int, help="so many matrices of 8 kB are the whole model")
    parser.add_argument(
        "--llama", action="store_true", help="an embedding of 32,000 x 4096 and one 4096 x 11008 matrix"
    )
    parser.add_argument("--folds", type=int, default=2)
    parser.add_argument("--rule", default="opcm")
    parser.add_argument("--remerge", nargs="*", default=[], metavar="RULE", help="merge anew by these, each on its own")
    parser.add_argument(
        "--limit-mb", type=float, help="exit 1 if the peak is above; else above the memory that is taken and 300"
    )
    arguments = parser.parse_args()
    with work_folder() as work:
        result = measure(work, model(arguments), arguments.folds, arguments.rule, arguments.remerge)
    print(json.dumps(result))
    sys.exit(0 if result["peak_rss_mb"] <= (arguments.limit_mb or result["memory_mb"] + 300) else 1)


if __name__ == "__main__":
    main()
