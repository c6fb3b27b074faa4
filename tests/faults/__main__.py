"""kill -9 by the thousand: at moments of chance, at every call, and with a protocol that is broken on purpose.

python -m faults --count 1000 --seed 1 (in tests/, or `make kills`); exit 1 if anything was wrong, if a step of the commit
protocol was never hit, or if a broken protocol went unnoticed.
"""

import argparse
import json
from pathlib import Path

from faults.broken import BROKEN
from faults.children import with_shim
from faults.kills import kill
from faults.points import SCENARIOS, kill_at_calls, kill_broken


def main() -> None:
    """Run it all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1000, help="kills at moments of chance")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--every", type=int, default=1, help="kill at one call in so many")
    parser.add_argument("--report", type=Path, help="write what was seen to a file, as JSON")
    options = parser.parse_args()
    with with_shim("faults") as faults:
        broken = {}
        for name, breaks in BROKEN.items():
            broken[name] = kill_broken(faults, breaks)
            print(f"broken on purpose, {name}: {'found' if broken[name].wrong else 'NOT FOUND'}", flush=True)
        points = {}
        for name in SCENARIOS:
            points[name] = kill_at_calls(name, faults, options.every, options.seed)
            print(points[name], flush=True)
        kills = kill(faults, options.count, options.seed)
        print(kills)
    good = kills.good and all(r.wrong for r in broken.values()) and not any(r.wrong for r in points.values())
    if options.report:
        seen = {
            "good": good,
            "broken": {name: report.wrong for name, report in broken.items()},
            "points": {name: [report.kills.total(), report.wrong] for name, report in points.items()},
            "kills": {"count": kills.kills, "making": kills.making, "missed": kills.missed, "wrong": kills.wrong},
        }
        options.report.write_text(json.dumps(seen))
    raise SystemExit(0 if good else 1)


if __name__ == "__main__":
    main()
