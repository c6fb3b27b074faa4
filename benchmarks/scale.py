"""What a fold costs against the number of folds, the parameters and the largest matrix, and what an adapter's costs.

    python benchmarks/scale.py

What is measured here is carried on to models that no disk here holds, with the arithmetic shown. Writes its part of
docs/benchmarks.md.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import adapters
import memory
import steady
import stream
from commands import Cost, Merge, work_folder
from comparing import Part, Promise, Spread, at_most, figure, machine, table
from floor import copy
from models import Shapes, clip_config, clip_shapes, llama_config, llama_shapes, make_model, parameters, remove

ON_DISK = 24  # bytes for each parameter in float32: base model, checkpoint, two versions of a model and a slot each
FURTHER = {
    "Llama 8 B": llama_config(4096, 14_336, 32, 128_256, 1024),
    "Llama 70 B": llama_config(8192, 28_672, 80, 128_256, 1024),
}


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    folds: tuple[int, ...] = (steady.SPAN, 10 * steady.SPAN, 100 * steady.SPAN)
    hidden: int = 768
    layers: tuple[int, ...] = (2, 12, 48, 144)
    sides: tuple[int, ...] = (1024, 2048, 4096)
    large: Shapes = field(default_factory=lambda: memory.LLAMA)
    width: int = 4096  # of the matrix that an adapter changes
    stream: int = 12  # layers


QUICK = Sizes((2, 4), 64, (1,), (), {"embed_tokens.weight": (1000, 64), "w": (64, 96)}, 64, 1)


def measure(work: Path, sizes: Sizes, only: str = "") -> Part:
    """Measure all, or what `only` names, each in a folder that goes away."""
    with_layers = (partial(of_layers, hidden=sizes.hidden, layers=layers) for layers in sizes.layers)
    matrices = (partial(of_matrix, side=side) for side in sizes.sides)
    parts: dict[str, Callable[[], Any]] = {
        "folds": lambda: aside(work, lambda at: list(steady.measure(at, sizes.folds))),
        "parameters": lambda: [aside(work, one) for one in with_layers],
        "matrices": lambda: [aside(work, one) for one in matrices],
        "large": lambda: aside(work, lambda at: memory.measure(at, sizes.large)),
        "adapter": lambda: aside(work, lambda at: adapters.measure(at, sizes.width, 1, 3)),
        "stream": lambda: aside(work, lambda at: stream.measure(at, sizes.stream, 3)),
    }
    return {name: part() for name, part in parts.items() if only in ("", name)}


def aside(work: Path, measured: Callable[[Path], Any]) -> Any:
    """Measure in a folder that goes away."""
    folder = work / "scale"
    folder.mkdir()
    found = measured(folder)
    shutil.rmtree(folder)
    print(f"  {json.dumps(found)}", file=sys.stderr, flush=True)
    return found


def of_matrix(work: Path, side: int) -> dict[str, Any]:
    """Measure the peak memory where one square matrix is the whole model."""
    return memory.measure(work, {"layer.proj.weight": (side, side)}) | {"side": side}


def of_layers(work: Path, hidden: int, layers: int) -> dict[str, Any]:
    """Measure the second fold of a model of so many layers, with a decomposition of each matrix and without any."""
    shapes = clip_shapes(clip_config(hidden, layers))
    wanted, free = ON_DISK * parameters(shapes), shutil.disk_usage(work).free
    if wanted > 0.9 * free:
        sys.exit(f"{wanted / 1e9:.0f} GB of disk are needed, {free / 1e9:.0f} are free: give --largest")
    base = make_model(work / "base", 0, shapes)
    file = base / "model.safetensors"
    copied = copy(file, work / "copy", file.stat().st_size, file.stat().st_size)
    (work / "copy").unlink()
    found: dict[str, Any] = {
        "parameters": parameters(shapes),
        "work": decomposing(shapes),
        "copied": 2 * file.stat().st_size / copied["wall"],
    }
    for rule in ("opcm", "average"):
        merge = Merge(work / rule, base, rule)
        cost = [fold(merge, make_model(work / f"fine-tune-{seed}", seed, shapes)) for seed in (1, 2)][-1]
        newest = merge.log()[0]
        found[rule] = (
            asdict(cost) | {key: newest[f"bytes_{key}"] for key in ("read", "written")} | {"disk": merge.disk()}
        )
        shutil.rmtree(merge.work)
    return found


def fold(merge: Merge, checkpoint: Path) -> Cost:
    """Fold a checkpoint and delete it."""
    merge.drop(checkpoint)
    cost = merge.run_once(of=1)
    remove(checkpoint, merge.watch / checkpoint.name)
    return cost


def decomposing(shapes: Shapes) -> int:
    """Return what decomposing the matrices grows with: the sum of m n min(m, n)."""
    matrices = [shape for name, shape in shapes.items() if len(shape) == 2 and "embed" not in name]
    return sum(prod(shape) * min(shape) for shape in matrices)


def tables(part: Part) -> str:
    """Return what was found, for the page."""
    return "\n".join((*by_folds(part), *by_parameters(part), *further(part), *by_matrix(part), *by_adapters(part)))


def by_folds(part: Part) -> Iterator[str]:
    """Yield what a fold costs after others."""
    span = steady.SPAN
    yield f"Against the number of folds: a process that folds the last {span} of so many checkpoints of a small model; of one fold:\n"
    heads = ["folds", "CPU, s", "MB read", "MB written", "peak RSS, MB", "state on disk, MB"]
    yield table(heads, [
        [f"{one['folds']:,}", f"{one['cpu']:.3f}", *(f"{one[key] / 1e6:.2f}" for key in ("read", "written")),
         figure(one["rss"]), f"{one['disk'] / 1e6:.1f}"]
        for one in part["folds"]
    ])  # fmt: skip


def by_parameters(part: Part) -> Iterator[str]:
    """Yield what a fold costs of larger models."""
    yield "Against the parameters: the second fold of a model of more and more layers of ViT-B/32, float32, a process of its own:\n"
    heads = [
        "million parameters",
        "rule",
        "CPU, s",
        "wall, s",
        "peak RSS, MB",
        "GB read",
        "GB written",
        "state on disk, GB",
    ]
    yield table(heads, [
        [figure(one["parameters"] / 1e6), f"`{rule}`", *(figure(one[rule][key]) for key in ("cpu", "wall", "rss")),
         *(f"{one[rule][key] / 1e9:.2f}" for key in ("read", "written", "disk"))]
        for one in part["parameters"] for rule in ("opcm", "average")
    ])  # fmt: skip


def further(part: Part) -> Iterator[str]:
    """Yield what larger models would cost, and how that is reckoned."""
    one = part["parameters"][-1]
    count, opcm, average = one["parameters"], one["opcm"], one["average"]
    passing, speed = average["cpu"] / count, one["copied"]
    each = max(opcm["cpu"] - average["cpu"], 0) / one["work"]
    moved = (opcm["read"] + opcm["written"]) / count
    yield (
        f"Carried on, not measured: passing the numbers takes {passing * 1e9:.3g} CPU seconds for each billion (`average`, the largest"
        f" model above: {average['cpu']:.3g} s / {count / 1e9:.3g}); decomposing takes {each * 1e12:.3g} for each 10^12 of the sum of"
        f" m n min(m, n) over the matrices ({opcm['cpu']:.3g} s less {average['cpu']:.3g} s, / {one['work'] / 1e12:.3g}); a fold moves"
        f" {moved:.3g} bytes for each parameter in float32, and a copy went at {speed / 1e9:.3g} GB/s; the state takes"
        f" {opcm['disk'] / count:.3g} bytes for each.\n"
    )
    rows = []
    for name, config in FURTHER.items():
        shapes = llama_shapes(config)
        total, products = parameters(shapes), decomposing(shapes)
        numbers = (
            total / 1e9,
            products / 1e12,
            passing * total,
            each * products,
            moved * total / speed,
            opcm["disk"] / count * total / 1e9,
        )
        rows.append([name, *map(figure, numbers)])
    yield table(["", "billion parameters", "10^12 of the sum", "CPU to pass, s", "CPU to decompose, s", "copying the bytes, s",
                 "state on disk, GB"], rows)  # fmt: skip


def by_matrix(part: Part) -> Iterator[str]:
    """Yield the peak memory of large matrices."""
    yield "Memory against the largest matrix; `memory` is not set, so that it is as much as that takes:\n"
    rows = [[f"one matrix, {one['side']} x {one['side']}", 4 * one["side"] ** 2] for one in part["matrices"]]
    rows += [["an embedding of 32,000 x 4096 and one 4096 x 11008 matrix", 4 * 4096 * 32_000]]
    found = [(one["memory_mb"], one["peak_rss_mb"]) for one in (*part["matrices"], part["large"])]
    yield table(["model", "largest weight, MB", "working buffers, MB", "peak RSS, MB"],
                [[name, figure(size / 1e6), *each] for (name, size), each in zip(rows, found, strict=True)])  # fmt: skip


def by_adapters(part: Part) -> Iterator[str]:
    """Yield what adapters cost."""
    made, wide = part["stream"], part["adapter"]
    yield f"Adapters of rank {wide['rank']}: the newest of {made['versions']} of a decoder's query and value projections, in MB:\n"
    names = ("adapter", "model", "touched", "read", "written")
    heads = ["adapter", "model", "weights that an adapter changed", "read, publishing included", "written"]
    yield table(heads, [[figure(made[f"{name}_mb"]) for name in names]])


def promises(part: Part) -> Iterator[Promise]:
    """Yield the figures to reach."""
    first, *_, last = part["folds"]
    few, many = f"{first['folds']:,}", f"{last['folds']:,}"
    for key, what in (("rss", "peak RSS"), ("cpu", "CPU"), ("read", "bytes read"), ("written", "bytes written")):
        yield at_most(f"times the {what} of fold {few}, at fold {many}", 1.05, alone(last[key] / first[key]))
    largest = part["parameters"][-1]
    name = f"{4 * largest['parameters'] / 1e9:.2g} GB"
    yield at_most(f"MB peak RSS on a model of {name} of ViT-B/32's matrices", 340, alone(largest["opcm"]["rss"]))
    yield at_most(
        "MB peak RSS over the working buffers, with a large embedding and a 4096 x 11008 matrix",
        300,
        alone(part["large"]["peak_rss_mb"] - part["large"]["memory_mb"]),
    )
    made = part["stream"]
    yield at_most("times the changed weights' bytes (published, and slots) written of an adapter's fold", 1.05,
                  alone(made["written_mb"] / (3 * made["touched_mb"])))  # fmt: skip


def alone(value: float) -> Spread:
    """Return a figure that was measured once."""
    return Spread.of([value])


def main() -> None:
    """Measure, and write the page."""
    from page import Page

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it works")
    parser.add_argument(
        "--largest", type=int, default=144, help="layers of the largest model, 7 million parameters each"
    )
    parser.add_argument("--only", default="", help="measure one part again, such as folds, and keep the others")
    parser.add_argument("--docs", type=Path, help="write the page in this folder instead of docs/")
    arguments = parser.parse_args()
    layers = tuple(one for one in Sizes().layers if one < arguments.largest)
    sizes = QUICK if arguments.quick else Sizes(layers=(*layers, arguments.largest))
    with work_folder() as work:
        found = measure(work, sizes, arguments.only)
    command = "python benchmarks/scale.py" + (f" --largest {arguments.largest}" if arguments.largest != 144 else "")
    page = Page(arguments.docs)
    kept = page.results()["scale"] if arguments.only else {}
    page.keep("scale", {**kept, "command": command, "machine": machine(), **found})


if __name__ == "__main__":
    main()
