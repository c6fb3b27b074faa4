"""What mergd is held against, computed plainly and without it: what the merged model is after each checkpoint."""

import json
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from .kinds import Weights
from .sets import kind_of

TIES_DENSITY, TIES_SCALE = 0.2, 0.5  # as fusion-bench's configuration of "continual" TIES has them
IN_PACKAGE = Path(__file__).with_name("in_package.py")


class NotInstalled(Exception):
    """A package that is compared with is not there."""


@dataclass(frozen=True)
class Given:
    """What a reference merges: whole weights in the order of arrival, and where they lie as model folders."""

    kind: str
    base: Weights
    tuned: Sequence[Weights]
    base_folder: Path
    folders: Sequence[Path]


def steps(name: str, given: Given, parameters: Mapping[str, float], peers: Path, work: Path) -> Iterator[Weights]:
    """Yield the merged weights after each checkpoint; of a plain sum, after the last alone."""
    if name == "plain-average":
        yield from _averages(given)
    elif name == "plain-sum":
        yield _published(given.base, sum_of(given), parameters["scale"])
    elif name == "chained-ties":
        yield from _chained_ties(given)
    elif name == "fusion-bench-opcm":
        yield from _fusion_bench(given, peers / "fusion-bench" / "bin" / "python", work)
    else:
        raise ValueError(name)


def sum_of(given: Given) -> Weights:
    """Return the sum of the task vectors."""
    return {n: torch.stack([t[n].double() - w.double() for t in given.tuned]).sum(0) for n, w in given.base.items()}


def _published(base: Weights, tau: Weights, scale: float) -> Weights:
    return {name: (w.double() + scale * tau[name]).to(w.dtype) for name, w in base.items()}


def _averages(given: Given) -> Iterator[Weights]:
    total = {name: torch.zeros_like(w, dtype=torch.float64) for name, w in given.base.items()}
    for count, tuned in enumerate(given.tuned, 1):
        for name, w in given.base.items():
            total[name] += tuned[name].double() - w.double()
        yield _published(given.base, total, 1 / count)


def _chained_ties(given: Given) -> Iterator[Weights]:
    """As published: from the second on, the merged task vector and the new one are merged by TIES, and that is added.

    The first is added at the same scale. (The norm of what comes of this doubles and doubles; it is what the literature compares with.)
    """
    base = _flat(given.base)
    merged = torch.zeros_like(base)
    for count, tuned in enumerate(given.tuned):
        new = _flat(tuned) - base
        merged = merged + TIES_SCALE * (_ties(torch.stack([merged, new])) if count else new)
        yield _unflat(base + merged, given.base)


def _ties(taus: Tensor) -> Tensor:
    """Return the sum of the trimmed entries that have the elected sign; taus: (T, p)."""
    kept = int(taus.shape[1] * TIES_DENSITY)
    least = taus.abs().kthvalue(taus.shape[1] - kept, dim=1, keepdim=True).values
    trimmed = torch.where(taus.abs() >= least, taus, 0.0)
    sign = trimmed.sum(0).sign()
    sign = torch.where(sign == 0, sign.sum().sign(), sign)
    agrees = torch.where(sign > 0, trimmed > 0, trimmed < 0)
    return torch.where(agrees, trimmed, 0.0).sum(0)


def _flat(weights: Weights) -> Tensor:
    return torch.cat([weights[name].flatten().double() for name in sorted(weights)])


def _unflat(flat: Tensor, like: Weights) -> Weights:
    names = sorted(like)
    parts = torch.split_with_sizes(flat, [like[name].numel() for name in names])
    return {n: part.view(like[n].shape).to(like[n].dtype) for n, part in zip(names, parts, strict=True)}


def _fusion_bench(given: Given, python: Path, work: Path) -> Iterator[Weights]:
    """Run the package's own OPCM, at its published settings, in an environment of its own."""
    if not python.exists():
        raise NotInstalled(f"there is no {python}: make .peers/fusion-bench/.ready")
    work.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix="fusion-bench-", dir=work) as out:
        tree = Path(out) / "tree.json"
        modules = kind_of(given.kind).encoder().named_modules()
        tree.write_text(json.dumps({name: isinstance(module, nn.Linear) for name, module in modules}))
        words = [python, IN_PACKAGE, tree, out, given.base_folder, *given.folders]
        ran = subprocess.run(
            list(map(str, words)), check=False, capture_output=True, text=True, env={"OMP_NUM_THREADS": "1"}
        )
        if ran.returncode:
            raise RuntimeError(f"fusion-bench ended with {ran.returncode}:\n{(ran.stdout + ran.stderr)[-4000:]}")
        for step in range(len(given.folders)):
            yield load_file(Path(out) / f"{step}.safetensors")
