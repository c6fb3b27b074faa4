"""Whether a late fold costs what an early one did: many checkpoints of one base model through the real command line.

Prints one line of JSON: seconds, bytes read and bytes written of the early and the late folds, and the disk at the end
beside what the kept versions need.
"""

import argparse
import json
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from memory import make_model, mergd

from mergd.state.writing import Planned

SPAN = 10  # folds at each end that are compared
SHAPES = {"a.proj.weight": (512, 512), "b.proj.weight": (1024, 256), "a.proj.bias": (512,), "embed.weight": (4000, 256)}


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folds", type=int, default=100)
    folds = parser.parse_args().folds
    planned = [Planned(name, "F32", shape) for name, shape in SHAPES.items()]
    with tempfile.TemporaryDirectory(dir=".") as name:
        work = Path(name)
        make_model(work / "base", 0, planned)
        for seed in range(1, folds + 1):
            make_model(work / "drop" / f"fine-tune-{seed:05d}", seed, planned)
        config = work / "mergd.toml"
        mergd("init", "--base", str(work / "base"), "--watch", str(work / "drop"), "--state", str(work / "state"),
              "--existing", "fold", "--config", str(config))  # fmt: skip
        config.write_text('keep_within = "0s"\n' + config.read_text())
        mergd("run", "--once", "-c", str(config))
        log = [json.loads(line) for line in (work / "state" / "log.jsonl").read_text().splitlines()][::-1]
        used = json.loads((work / "state" / "status.json").read_text())["disk"]["used"]
    result = {
        "folds": len(log),
        "early": cost(log[1 : 1 + SPAN]),
        "late": cost(log[-SPAN:]),
        "disk_mb": round(used / 1e6, 1),
        "versions_mb": round(2 * sum(p.nbytes for p in planned) * sum(entry["kept"] for entry in log) / 1e6, 1),
    }
    print(json.dumps(result))


def cost(entries: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the medians of some folds."""
    return {
        "seconds": round(statistics.median(sum(entry["seconds"].values()) for entry in entries), 3),
        "mb_read": round(statistics.median(entry["bytes_read"] for entry in entries) / 1e6, 2),
        "mb_written": round(statistics.median(entry["bytes_written"] for entry in entries) / 1e6, 2),
    }


if __name__ == "__main__":
    main()
