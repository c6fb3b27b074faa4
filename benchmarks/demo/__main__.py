"""The demo: five small real models, fine-tuned on the spot, dropped one by one before a running mergd daemon."""

import argparse
import shutil
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from digit_figures import complaints
from digit_picture import save_picture
from digit_tables import show_final, show_step, show_summary
from digit_trials import Trial, run_trial
from rich.console import Console
from running import DemoFailed

ROOT = Path(__file__).resolve().parents[2]
SEEDS = (11, 12, 13, 14, 15)  # chosen beforehand; the training was tuned on seeds 1 to 4
THREADS = 1  # of torch: two wait for each other for long where the machine is busy, and gain little


def main() -> int:
    """Run all seeds, show and draw the figures, and return the exit code."""
    options = _options()
    console = Console()
    torch.set_num_threads(THREADS)
    torch.use_deterministic_algorithms(True)
    try:
        trials = _run(options.seeds, options.work, console)
    except DemoFailed as failed:
        console.print(str(failed), style="red", markup=False, highlight=False)
        return 1
    show_final(console, trials)
    if options.picture:
        save_picture(trials, options.picture)
        console.print(f"The picture is {options.picture}.", highlight=False)
    broken = complaints(trials)
    for sentence in broken:
        console.print(sentence, style="red")
    return 1 if broken else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks/demo", description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS, help="default: %(default)s")
    parser.add_argument("--work", type=Path, default=ROOT / ".demo", help="work folder; its seed-* folders are wiped")
    picture = parser.add_mutually_exclusive_group()
    picture.add_argument("--picture", type=Path, default=ROOT / "docs" / "demo.svg", help="the SVG file to write")
    picture.add_argument("--no-picture", dest="picture", action="store_const", const=None, help="draw nothing")
    return parser.parse_args()


def _run(seeds: Sequence[int], work: Path, console: Console) -> list[Trial]:
    """Run one seed after the other: the first in detail, the others as a line each."""
    for old in work.glob("seed-*"):
        shutil.rmtree(old)
    trials: list[Trial] = []
    for seed in seeds:
        started = time.monotonic()
        if not trials:
            console.print(f"Seed {seed} in detail; accuracy on test images, in %, on the tasks so far.")
        watch = _nothing if trials else partial(show_step, console)
        trials.append(run_trial(seed, work.resolve() / f"seed-{seed}", watch))
        show_summary(console, trials[-1], time.monotonic() - started)
    return trials


def _nothing(trial: Trial) -> None:
    """The later seeds are shown as a line each."""


if __name__ == "__main__":
    sys.exit(main())
