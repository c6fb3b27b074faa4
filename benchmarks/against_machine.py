"""A fold in a running daemon, beside copying the bytes that it read and wrote, and beside its products by the BLAS alone."""

import json
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

from commands import Arrival, Cost, Daemon, Merge, cost_of, running
from comparing import Part, Promise, Samples, Sizes, at_most, interleaved, ratio, table, values
from models import Shapes, make_model, parameters, square_shapes

FLOOR = Path(__file__).with_name("floor.py")


def measure(work: Path, sizes: Sizes) -> Part:
    """Fold into models of small matrices, and of larger ones that are decomposed ahead."""
    samples: Samples = {}
    facts: dict[str, Any] = {}
    for rule, side in sizes.squares:
        model = Model(work / f"{rule}-{side}", f"{rule}/{side}", square_shapes(sizes.gb, side))
        found, facts[model.name] = model.measured(rule, sizes.rounds)
        samples |= found
    return {"samples": samples, "facts": facts}


class Model:
    """A model whose fine-tunes arrive one by one, each made when its turn comes."""

    def __init__(self, work: Path, name: str, shapes: Shapes) -> None:
        self.work, self.name, self.shapes = work, name, shapes
        self.base = make_model(work / "base", 0, shapes)
        self.seeds = count(1)

    def measured(self, rule: str, rounds: int) -> tuple[Samples, dict[str, Any]]:
        """Fold some of them in one daemon, each beside a copy of as many bytes; the models are deleted at the end."""
        merge = Merge(self.work / "merge", self.base, rule)
        with running(merge) as daemon:
            self.arrival(daemon)  # nothing is there yet that could be decomposed
            samples = interleaved(rounds, lambda: self.round(daemon))
        newest = merge.log()[0]
        facts = {
            "parameters": parameters(self.shapes),
            "read": newest["bytes_read"],
            "written": newest["bytes_written"],
        }
        if rule == "opcm":
            facts["floor"] = self.products()
        shutil.rmtree(self.work)
        return samples, facts

    def round(self, daemon: Daemon) -> Mapping[str, Cost]:
        """Fold one, and copy."""
        arrival = self.arrival(daemon)
        newest = daemon.merge.log()[0]
        inside = replace(arrival.fold, wall=sum(newest["seconds"].values()))
        copied = self.floor(
            "copy", self.base / "model.safetensors", self.work / "copy", newest["bytes_read"], newest["bytes_written"]
        )
        (self.work / "copy").unlink()
        copy = Cost(copied["cpu"], copied["wall"], 0.0)
        found = {"copy": copy, "fold": arrival.fold, "inside": inside, "idle": arrival.idle}
        return {f"{self.name}/{what}": cost for what, cost in found.items()}

    def arrival(self, daemon: Daemon) -> Arrival:
        """Let the next fine-tune arrive; it is deleted once it is folded."""
        seed = next(self.seeds)
        checkpoint = make_model(self.work / f"fine-tune-{seed}", seed, self.shapes)
        found = daemon.arrival(checkpoint)
        shutil.rmtree(checkpoint)
        shutil.rmtree(daemon.merge.watch / checkpoint.name)
        return found

    def products(self) -> dict[str, float]:
        """Return the CPU seconds of the products of all matrices, and of their decomposition, by the BLAS alone."""
        matrices = [shape for shape in self.shapes.values() if len(shape) == 2]
        each = self.floor("products", *matrices[0])
        return {key: each[key] * len(matrices) for key in ("projecting", "decomposing")} | {"rank": each["rank"]}

    def floor(self, *words: object) -> dict[str, float]:
        """Run floor.py."""
        log = self.work / "floor.log"
        cost_of(sys.executable, FLOOR, *words, log=log)
        found: dict[str, float] = json.loads(log.read_text().splitlines()[-1])
        return found


def tables(part: Part) -> str:
    """Return what was found, for the page."""
    rows, products = [], []
    for name, facts in part["facts"].items():
        rule, side = name.split("/")
        copied = [f"{facts[key] / 1e9:.2f}" for key in ("read", "written")]
        seconds = [values(part, f"{name}/{what}", "wall") for what in ("copy", "inside", "fold")]
        times = [ratio(part, f"{name}/{what}", f"{name}/copy", "wall") for what in ("inside", "fold")]
        rows.append([f"`{rule}`, {side} x {side}", *copied, *seconds, *times])
        if "floor" in facts:
            cpu = [values(part, f"{name}/{what}", "cpu") for what in ("fold", "idle")]
            floor = [f"{facts['floor'][key]:.2f}" for key in ("projecting", "decomposing")]
            products.append([f"{side} x {side}", f"{facts['floor']['rank']:.0f}", floor[0], cpu[0], floor[1], cpu[1]])
    heads = ["model", "GB read", "GB written", "copy, s", "fold and publish, s", "arrival to `current`, s",
             "fold over copy", "arrival over copy"]  # fmt: skip
    more = ["OPCM", "split rank", "products alone, CPU s", "fold, CPU s", "decompositions alone, CPU s", "idle, CPU s"]
    return table(heads, rows) + "\n" + table(more, products)


def promises(part: Part) -> Iterator[Promise]:
    """Yield the figures to reach."""
    for name in part["facts"]:
        times = ratio(part, f"{name}/inside", f"{name}/copy", "wall")
        yield at_most(f"times a copy of the same bytes: {name.replace('/', ', ')} wide", 1.5, times)
