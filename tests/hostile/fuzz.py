"""Headers mutated by chance, from a seed: mergd's reader must say of each what the strict one says, and crash at none.

python -m hostile.fuzz --count 10000 --seed 1 (in tests/, or by `make fuzz`) prints what was seen.
"""

import argparse
import random
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from hostile.mutants import a_file
from hostile.strict import Judgement, judge

from mergd.state.errors import Busy, Refused
from mergd.state.headers import read_header


@dataclass
class Report:
    """What a run saw."""

    decisions: Counter[str] = field(default_factory=Counter)
    mutations: Counter[str] = field(default_factory=Counter)
    differences: list[str] = field(default_factory=list)  # what differed, with the bytes
    slowest: float = 0.0  # seconds

    def __str__(self) -> str:
        lines = [
            f"{name}: {count}" for table in (self.decisions, self.mutations) for name, count in table.most_common()
        ]
        return "\n".join([*lines, f"slowest: {1000 * self.slowest:.1f} ms", f"differences: {len(self.differences)}"])


def mergds_judgement(path: Path) -> Judgement:
    """Return what mergd says of a file; whatever else it raises is a crash, and passes through."""
    try:
        found = read_header(path)
    except Refused:
        return Judgement("refused", [])
    except Busy:
        return Judgement("incomplete", [])
    return Judgement("whole", [(t.name, t.dtype, t.shape, t.start, t.nbytes) for t in found.values()])


def fuzz(count: int, seed: int, folder: Path) -> Report:
    """Judge so many mutated files; file `k` of a seed is always the same one."""
    report, path = Report(), folder / "model.safetensors"
    for k in range(count):
        content, mutations = a_file(random.Random(f"{seed} {k}"))
        path.unlink(missing_ok=True)  # a file system may sync one that is emptied and written again
        path.write_bytes(content)
        started = time.perf_counter()
        try:
            found = mergds_judgement(path)
        except Exception as error:  # noqa: BLE001 - each one is a fault to be shown
            report.differences.append(f"{seed} {k}: {error!r} at {content!r}")
            continue
        report.slowest = max(report.slowest, time.perf_counter() - started)
        expected = judge(content)
        if (found.decision, sorted(found.tensors)) != (expected.decision, sorted(expected.tensors)):
            report.differences.append(f"{seed} {k}: {found} for {expected} of {content!r}")
        report.decisions[expected.decision] += 1
        report.mutations.update(mutations)
    return report


def main() -> None:
    """Run it from the command line; exit 1 if anything differed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report = fuzz(options.count, options.seed, Path(folder))
    print(report)
    for difference in report.differences[:20]:
        print(difference)
    raise SystemExit(bool(report.differences))


if __name__ == "__main__":
    main()
