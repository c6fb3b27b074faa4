"""Folding the N-th model by mergd, beside merging all N anew by mergekit's own command: a small Llama in bfloat16."""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from commands import Cost, Merge, cost_of
from comparing import Part, Promise, Samples, Sizes, at_least, interleaved, ratio, table, values
from models import llama_shapes, make_pool, parameters

# By mergd's rule, with its defaults: what mergekit is to do, with the same meaning.
METHODS = {
    "task_arithmetic": {"merge_method": "task_arithmetic", "parameters": {"weight": 1.0, "lambda": 0.3}},
    "ties": {"merge_method": "ties", "parameters": {"weight": 1.0, "density": 0.2}},
}
# Nothing is unpickled here; there is no tokenizer; and a model card is not what is measured.
OPTIONS = ("--lazy-unpickle", "--no-copy-tokenizer", "--no-write-model-card")
TARGETS = {"task_arithmetic": 3, "ties": 20}


def measure(work: Path, sizes: Sizes, command: Path | None) -> Part:
    """Run both by turns for each rule and N; without mergekit where it is not installed."""
    shapes = llama_shapes(sizes.llama)
    base, checkpoints = make_pool(work / "models", max(sizes.counts), shapes, torch.bfloat16, sizes.llama)
    samples: Samples = {}
    for rule in METHODS:
        for count in sizes.counts:
            folded = Folded(work / f"{rule}-{count}", base, rule, checkpoints[:count])
            peer = [partial(anew, work, command, base, rule, checkpoints[:count])] if command else []
            samples |= interleaved(sizes.rounds, *peer, folded.newest)
            shutil.rmtree(folded.merge.work)
    facts = {"parameters": parameters(shapes), "counts": list(sizes.counts)}
    return {"samples": samples, "facts": facts}


def anew(work: Path, command: Path, base: Path, rule: str, checkpoints: Sequence[Path]) -> Mapping[str, Cost]:
    """Merge all by mergekit."""
    models = {"base_model": str(base), "models": [{"model": str(folder)} for folder in checkpoints]}
    config = work / "mergekit.yaml"  # JSON is YAML too
    config.write_text(json.dumps(METHODS[rule] | models | {"dtype": "bfloat16"}))
    cost = cost_of(command, config, work / "merged", *OPTIONS, log=work / "mergekit.log")
    shutil.rmtree(work / "merged")
    return {f"mergekit/{rule}/{len(checkpoints)}": cost}


class Folded:
    """A merge that has all checkpoints but the newest, which can be folded again and again."""

    def __init__(self, work: Path, base: Path, rule: str, checkpoints: Sequence[Path]) -> None:
        self.name, self.checkpoints = f"mergd/{rule}/{len(checkpoints)}", checkpoints
        self.merge = Merge(work, base, rule)
        for checkpoint in checkpoints[:-1]:
            self.merge.drop(checkpoint)
        self.merge.run_once(of=len(checkpoints) - 1)
        self.kept = work / "kept"
        shutil.copytree(self.merge.state, self.kept, symlinks=True)

    def newest(self) -> Mapping[str, Cost]:
        """Fold the newest checkpoint, and bring the state before it back."""
        self.merge.drop(self.checkpoints[-1])
        cost = self.merge.run_once(of=1)
        inside = replace(cost, wall=sum(self.merge.log()[0]["seconds"].values()))
        shutil.rmtree(self.merge.watch / self.checkpoints[-1].name)
        shutil.rmtree(self.merge.state)
        shutil.copytree(self.kept, self.merge.state, symlinks=True)
        return {self.name: cost, f"{self.name}/inside": inside}


def tables(part: Part) -> str:
    """Return what was found, for the page."""
    rows = []
    for rule in METHODS:
        for count in part["facts"]["counts"]:
            ours, theirs = f"mergd/{rule}/{count}", f"mergekit/{rule}/{count}"
            found = [name in part["samples"] for name in (theirs, ours)]
            cells = [
                str(values(part, name, key)) if there else ""
                for key in ("wall", "cpu", "rss")
                for name, there in zip((theirs, ours), found, strict=True)
            ]
            times = [ratio(part, theirs, ours, key) if all(found) else "" for key in ("wall", "cpu")]
            rows.append([f"`{rule}`", count, *cells, *times, values(part, f"{ours}/inside", "wall")])
    pairs = [f"{what}: {who}" for what in ("wall, s", "CPU, s", "peak RSS, MB") for who in ("mergekit", "mergd")]
    return table(["rule", "N", *pairs, "times faster", "times less CPU", "mergd's fold alone, s"], rows)


def promises(part: Part) -> Iterator[Promise]:
    """Yield the figures to reach."""
    most = max(part["facts"]["counts"])
    for rule, times in TARGETS.items():
        theirs, ours = f"mergekit/{rule}/{most}", f"mergd/{rule}/{most}"
        if theirs in part["samples"]:
            what = f"times faster than mergekit's {rule} over {most}, to fold model {most}"
            yield at_least(what, times, ratio(part, theirs, ours, "wall"))
