"""The benchmark's command line: train, measure, page, each resumable; or --quick, all three in tiny: python -m quality."""

import argparse
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

from .measuring import Job, Places
from .methods import METHODS
from .quick import QUICK, complaints
from .recipe import Draw, Set
from .running import measure_all, train
from .sets import CURVE_ITEMS, POISONED, SETS, set_of

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("train", "measure", "page")


def main() -> int:
    """Do the parts that are asked for, and return the exit code."""
    options = _options()
    jobs = [job for job in _jobs(options) if job.fits]
    went_well = True
    if "train" in options.parts:
        went_well = train(options.where.resolve(), jobs, options.jobs)
    if "measure" in options.parts and went_well:
        went_well = measure_all(jobs, options.jobs)
    if "page" in options.parts and went_well and options.docs:
        import_module("quality.page").write(options.where / "results", options.docs)
    broken = complaints(jobs) if options.quick and went_well else []
    print(*broken, sep="\n", end="\n" * bool(broken), file=sys.stderr)
    return 0 if went_well and not broken else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m quality", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help="train, measure, page; default: all three")
    parser.add_argument("--quick", action="store_true", help="one draw of small sets, a few methods, in minutes")
    parser.add_argument("--sets", nargs="+", choices=[*SETS, *POISONED], metavar="SET", help="default: all")
    parser.add_argument("--draws", nargs="+", metavar="TRAINING-ORDER", help="default: all of each set")
    parser.add_argument("--methods", nargs="+", choices=METHODS, metavar="METHOD", help="default: all")
    parser.add_argument("--most", type=int, help="test items of a task that are looked at after each fold; 0: all")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time, of one thread each")
    parser.add_argument("--where", type=Path, default=ROOT / ".quality", help="models and results")
    parser.add_argument("--work", type=Path, help="where states lie while they are measured; default: WHERE/work")
    parser.add_argument("--peers", type=Path, default=ROOT / ".peers", help="where other packages are installed")
    parser.add_argument("--docs", type=Path, help="where the page is written; default: docs/, with --quick nowhere")
    options = parser.parse_args()
    options.parts = options.parts or PARTS
    if unknown := set(options.parts) - {*PARTS}:
        parser.error(f"there is no part {', '.join(sorted(unknown))}")
    if options.docs is None and not options.quick:
        options.docs = ROOT / "docs"
    return options


def _jobs(options: argparse.Namespace) -> Iterator[Job]:
    """Yield what is to be measured: set by set, draw by draw."""
    where = options.where.resolve()
    places = Places(where, (options.work or where / "work").resolve(), options.peers.resolve())
    for name in options.sets or (QUICK if options.quick else (*SETS, *POISONED)):
        one = set_of(name)
        most = CURVE_ITEMS.get(one.kind, 0) if options.most is None else options.most
        methods = options.methods or (QUICK.get(name, METHODS) if options.quick else METHODS)
        for draw in _draws(one, options):
            yield from (Job(places, one, draw, METHODS[method], most or None) for method in methods)


def _draws(one: Set, options: argparse.Namespace) -> tuple[Draw, ...]:
    if options.draws:
        return tuple(Draw(*map(int, draw.split("-"))) for draw in options.draws)
    return one.draws[:1] if options.quick else one.draws


if __name__ == "__main__":
    sys.exit(main())
