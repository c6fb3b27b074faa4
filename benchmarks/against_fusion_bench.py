"""mergd's OPCM beside fusion-bench's, on the weights of a CLIP vision tower in float32, whole processes."""

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import count
from pathlib import Path

from commands import Cost, Merge, cost_of, running
from comparing import Contender, Part, Promise, Samples, Sizes, at_least, at_most, interleaved, ratio, table, values
from models import clip_shapes, make_pool, parameters

from mergd.daemon.settings import keys

SCRIPT = Path(__file__).with_name("in_fusion_bench.py")
FEW, MORE = 2, 4  # checkpoints of the two processes whose difference is the cost of a fold
AHEAD = 2  # folds before the daemon starts
ON_ARRIVAL = {"prepare": "false"} if "prepare" in keys() else {}  # settings by which nothing is prepared while idle
WHO = {
    "fusion-bench": "fusion-bench",
    "fusion-bench-1": "fusion-bench, one thread",
    "prepared": "mergd, prepared while idle",
    "decomposing": "mergd, decomposing on arrival",
    "block_diagonal": "mergd, decomposing on arrival, fusion-bench's variant (`block_diagonal`)",
}
OURS = ("prepared", "decomposing", "block_diagonal")


@dataclass
class Bench:
    """The models, and where the processes work."""

    work: Path
    base: Path
    checkpoints: Sequence[Path]
    python: Path | None  # of the environment that has fusion-bench
    number: Iterator[int] = field(default_factory=count)

    def fusion_bench(self, checkpoints: int, *command: str) -> Cost:
        """Merge the first so many."""
        words = (*command, str(self.python), SCRIPT, self.work / "merged", self.base, *self.checkpoints[:checkpoints])
        return cost_of(*words, log=self.work / "fusion-bench.log")

    def on_one_thread(self, checkpoints: int) -> Cost:
        """Merge the first so many without threads, which on few cores can cost CPU time in waiting for each other."""
        return self.fusion_bench(checkpoints, "env", "OMP_NUM_THREADS=1")

    def mergd(self, checkpoints: int, **settings: object) -> Cost:
        """Fold the first so many, which have all arrived."""
        merge = Merge(self.work / f"merge-{next(self.number)}", self.base, settings=settings)
        for checkpoint in self.checkpoints[:checkpoints]:
            merge.drop(checkpoint)
        cost = merge.run_once(of=checkpoints)
        shutil.rmtree(merge.work)
        return cost


def measure(work: Path, sizes: Sizes, python: Path | None) -> Part:
    """Run all by turns; without fusion-bench where it is not installed."""
    shapes = clip_shapes(sizes.clip)
    wanted = max(sizes.backlog, AHEAD + sizes.rounds + 1)
    bench = Bench(work, *make_pool(work / "models", wanted, shapes, config=sizes.clip), python)
    peers = [_folds("fusion-bench", bench.fusion_bench)] if python else []
    ours = [_folds("decomposing", lambda n: bench.mergd(n, **ON_ARRIVAL))]
    if sizes.all_variants:
        peers += [_folds("fusion-bench-1", bench.on_one_thread)] if python else []
        ours += [_folds("block_diagonal", lambda n: bench.mergd(n, variant="block_diagonal", **ON_ARRIVAL))]
    samples = prepared(bench, sizes.rounds, peers, ours)
    backlogs = [_backlog("fusion-bench-1", bench.on_one_thread, sizes.backlog)] if python else []
    backlogs += [_backlog("decomposing", bench.mergd, sizes.backlog)]
    samples |= interleaved(1, *backlogs)
    after = Cost(**samples["prepared/idle"][-1]).each(sizes.backlog)  # the next decomposition, once for them all
    samples["decomposing/backlog+idle"] = [asdict(Cost(**samples["decomposing/backlog"][0]) + after)]
    return {"samples": samples, "facts": {"parameters": parameters(shapes), "backlog": sizes.backlog}}


def prepared(bench: Bench, rounds: int, before: Sequence[Contender], after: Sequence[Contender]) -> Samples:
    """Run all by turns, among them a daemon that prepares while idle, and idles while the others run."""
    merge = Merge(bench.work / "daemon", bench.base)
    for checkpoint in bench.checkpoints[:AHEAD]:
        merge.drop(checkpoint)
    merge.run_once(of=AHEAD)
    arriving = iter(bench.checkpoints[AHEAD:])
    with running(merge) as daemon:
        daemon.arrival(next(arriving))  # what a process does but once, such as loading libraries

        def arrives() -> Mapping[str, Cost]:
            arrival = daemon.arrival(next(arriving))
            both = arrival.fold + arrival.idle
            return {"prepared/fold": arrival.fold, "prepared/idle": arrival.idle, "prepared/both": both}

        return interleaved(rounds, *before, arrives, *after)


def _folds(who: str, merged: Callable[[int], Cost]) -> Contender:
    def contender() -> Mapping[str, Cost]:
        few, more = merged(FEW), merged(MORE)
        return {f"{who}/{FEW}": few, f"{who}/{MORE}": more, f"{who}/fold": more.each(MORE - FEW, few)}

    return contender


def _backlog(who: str, merged: Callable[[int], Cost], checkpoints: int) -> Contender:
    return lambda: {f"{who}/backlog": merged(checkpoints).each(checkpoints)}


def tables(part: Part) -> str:
    """Return what was found, for the page."""
    told = {
        "fold": "one fold",
        "idle": "while idle after it",
        "both": "fold and idle",
        "backlog": f"{part['facts']['backlog']} at once: each",
        "backlog+idle": "each, with its part of the idle work after them all",
    }
    rows = []
    for name in part["samples"]:
        who, _, what = name.partition("/")
        costs = [values(part, name, key) for key in ("cpu", "wall", "rss")]
        peer = beside(part, what)
        times = [ratio(part, peer, name, key) if peer and who in OURS else "" for key in ("cpu", "wall")]
        rows.append([WHO[who], told.get(what, f"process of {what} checkpoints"), *costs, *times])
    heads = ["", "", "CPU, s", "wall, s", "peak RSS, MB", "times less CPU", "times less wall"]
    return table(heads, rows)


def beside(part: Part, what: str) -> str | None:
    """Return the sample of fusion-bench, as it costs least, that something is held against."""
    there = {"both": "fold", "backlog+idle": "backlog"}.get(what, what)
    names = [f"{who}/{there}" for who in WHO if who not in OURS]
    measured = [name for name in names if name in part["samples"]]
    return min(measured, key=lambda name: values(part, name, "cpu").middle, default=None)


def promises(part: Part) -> Iterator[Promise]:
    """Yield the figures to reach; those beside fusion-bench as it costs least, with or without threads."""
    if peer := beside(part, "fold"):
        less = "times less CPU than fusion-bench"
        yield at_least(f"{less}, fold prepared while idle", 15, ratio(part, peer, "prepared/fold"))
        yield at_least(f"{less}, decomposing on arrival", 3, ratio(part, peer, "decomposing/fold"))
        yield at_most("of fusion-bench's CPU, fold and idle work together", 0.333, ratio(part, "prepared/both", peer))
    for name, what in (("prepared/fold", "prepared while idle"), (f"decomposing/{MORE}", "decomposing on arrival")):
        yield at_most(f"MB peak RSS, ViT-B/32, {what}", 340, values(part, name, "rss"))
