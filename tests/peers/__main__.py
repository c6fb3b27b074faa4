"""Holds mergd's references and rules against other packages: python -m peers [--write], from tests/.

Ends with 1 where a difference of more than 1e-5 has no explanation.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from support import commands

from .cases import CASES, MODELS
from .comparing import Compared, compare, drawn, seeds_of
from .models import fine_tunes, kinds, make_base, save
from .table import PATH, text

HERE = Path(__file__).resolve().parent
ENVIRONMENTS = HERE.parents[1] / ".peers"
PACKAGES = ("mergekit", "fusion-bench")


def main() -> int:
    """Make the models, let each package merge them, compare, and print or write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=4, help="checkpoints")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--environments", type=Path, default=ENVIRONMENTS, help="where `make peers` installed the packages"
    )
    parser.add_argument("--work", type=Path, help="where to keep the models; a folder that goes away, else")
    parser.add_argument("--write", action="store_true", help=f"write {PATH.name}")
    arguments = parser.parse_args()
    commands.PATIENCE = 1800.0  # wudi's steps take their time on a busy machine
    with tempfile.TemporaryDirectory() as folder:
        work = arguments.work or Path(folder)
        prepare(work, arguments.count, arguments.seed)
        for package in PACKAGES:
            run(package, arguments.environments / package, work)
        found = [compare(case, work, arguments.count) for case in CASES]
        versions = {package: (work / f"{package}.version").read_text() for package in PACKAGES}
    page = text(found, versions, arguments.count, arguments.seed)
    if arguments.write:
        PATH.write_text(page)
    else:
        sys.stdout.write(page)
    return tell(found)


def prepare(work: Path, count: int, seed: int) -> None:
    """Write the base models, the checkpoints and what is shipped beside them, and the packages' plan."""
    for model in MODELS:
        base = make_base(model, seed)
        save(work / model / "base", model, base)
        for i, theta in enumerate(fine_tunes(base, count, seed)):
            folder = work / model / f"checkpoint-{i}"
            save(folder, model, theta)
            generator = torch.Generator().manual_seed(1000 * seed + i)
            fisher = {name: torch.rand(weight.shape, generator=generator) ** 4 for name, weight in theta.items()}
            save_file(fisher, folder.with_name(f"{folder.name}.fisher.safetensors"))
            numbers = {name: drawn(seed, theta[name].numel()) for name, seed in seeds_of(folder).items()}
            save_file(numbers, folder.with_name(f"{folder.name}.drawn.safetensors"))
    (work / "plan.json").write_text(json.dumps(plan(count)))


def plan(count: int) -> dict[str, Any]:
    """Return what the packages are to run."""
    tables = {model: [name for name, kind in kinds(model).items() if kind == "lookup"] for model in MODELS}
    entries: dict[str, list[dict[str, Any]]] = {package: [] for package in PACKAGES}
    for number, case in enumerate(CASES):
        entry = {"id": str(number), "method": case.method, "options": dict(case.options), "models": case.models}
        entries[case.package].append(entry | {"checkpoints": case.checkpoints or count, "divided": case.divided})
    return {"lookups": tables, **entries}


def run(package: str, environment: Path, work: Path) -> None:
    """Let a package merge, in its own environment; what it prints is kept in the work folder."""
    python = environment / "bin" / "python"
    if not python.exists():
        sys.exit(f"{package} is not installed in {environment}: `make peers` does it")
    script = HERE / f"in_{package.replace('-', '_')}.py"
    with (work / f"{package}.log").open("w") as log:
        subprocess.run([str(python), str(script), str(work)], check=True, stdout=log, stderr=log)


def tell(found: list[Compared]) -> int:
    """Say what is not explained, and what failed."""
    wrong = [one for one in found if one.wrong]
    for one in wrong:
        print(f"{one.case.package} {one.case.told}: {one.wrong}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
