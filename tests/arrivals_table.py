"""Lets checkpoints arrive at length, with the settings as they are shipped: `python tests/arrivals_table.py --count 50`."""

import argparse
import os
import random
import sys
import tempfile
import time
from pathlib import Path

from support.arrivals import AS_SHIPPED, Arrivals, Judged, late, table
from support.commands import start_forking
from support.styles import KNOWN, MARKED

AT_ONCE = 32  # arrivals; most of them stall


def main() -> int:
    """Run, print the table, and return whether none was early and none late."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=50, help="of each style")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--same-user", action="store_true", help="the daemon is the user who writes")
    chosen = parser.parse_args()
    start_forking()
    good = True
    for styles, marked_only in ((KNOWN, False), (MARKED, True)):
        began = time.monotonic()
        judged, arrivals = run(styles, chosen.count, chosen.seed, marked_only, other_user=not chosen.same_user)
        who = "another user's" if arrivals.other_user else "the same user's"
        print(
            f"{who} checkpoints, seed {chosen.seed}, {time.monotonic() - began:.0f} s{' (marked_only)' * marked_only}"
        )
        print("\n".join(table(judged, arrivals.quiet, AS_SHIPPED.grace)), flush=True)
        for bad in [j for j in judged if j.early] + late(judged, arrivals.quiet, AS_SHIPPED.grace):
            print(f"bad: {bad.arrival.place.name}: {bad.early} early, {bad.seconds:.1f} s, {bad.state}")
            good = False
    return 0 if good else 1


def run(
    styles: tuple[str, ...], count: int, seed: int, marked_only: bool, *, other_user: bool
) -> tuple[list[Judged], Arrivals]:
    """Let so many of each style arrive, in any order."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        arrivals = Arrivals(Path(folder) / "merge", AS_SHIPPED, seed, other_user=other_user, marked_only=marked_only)
        coming = [arrivals.prepare(style, number) for number in range(count) for style in styles]
        random.Random(seed).shuffle(coming)
        return arrivals.run(coming, AT_ONCE), arrivals


if __name__ == "__main__":
    sys.exit(main())
