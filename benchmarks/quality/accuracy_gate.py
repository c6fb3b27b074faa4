"""A gate's program: the mean accuracy on a few test items of each task: accuracy_gate.py BASE KIND SEED ITEMS TASK...

What it is asked, and what it answers, is in docs/gates.md.
"""

import json
import sys
from pathlib import Path
from statistics import fmean

import torch
from safetensors.torch import load_file

sys.path[0] = str(Path(__file__).resolve().parents[1])
from quality.sets import kind_of


def main() -> None:
    """Answer one request."""
    base_folder, kind_name, seed, items, *tasks = sys.argv[1:]
    torch.set_num_threads(1)
    kind, asked = kind_of(kind_name), json.load(sys.stdin)
    base, weights = (load_file(Path(folder) / "model.safetensors") for folder in (base_folder, asked["model"]))
    shares = [kind.accuracy(base, weights, task, int(seed), int(items)) / 100 for task in tasks]
    metric = {"value": fmean(shares), "higher_is_better": True, "n": int(items) * len(tasks)}
    json.dump({"protocol": 1, "metrics": {"accuracy": metric}}, sys.stdout)


if __name__ == "__main__":
    main()
