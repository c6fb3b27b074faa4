"""Commands as processes of their own and what each cost, and a merge that is driven by mergd's own command line."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LAUNCH = Path(__file__).resolve().parent / "launch.py"
LEAST = 1e-3  # seconds: what is less is not told from nothing
CALM = 1.0  # seconds for which an idle daemon does nothing
PATIENCE = 3600.0  # seconds


@dataclass(frozen=True)
class Cost:
    """CPU and wall seconds of one or more processes, and the largest peak of resident memory, in MB (10^6 bytes)."""

    cpu: float
    wall: float
    rss: float

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.cpu + other.cpu, self.wall + other.wall, max(self.rss, other.rss))

    def each(self, count: int, less: "Cost | None" = None) -> "Cost":
        """Return the cost of one of `count` equal parts of what this cost more than another."""
        cpu, wall = (self.cpu - less.cpu, self.wall - less.wall) if less else (self.cpu, self.wall)
        return Cost(max(cpu / count, LEAST), max(wall / count, LEAST), self.rss)


def cost_of(*words: object, log: Path) -> Cost:
    """Run a command, with its output in `log`, and return what it cost; end with its complaint if it fails."""
    launched = [sys.executable, "-I", "-S", str(LAUNCH), str(log), *map(str, words)]
    told = json.loads(subprocess.run(launched, check=True, capture_output=True, text=True).stdout)
    if told["code"]:
        sys.exit(f"{' '.join(map(str, words))} ended with {told['code']}:\n{log.read_text(errors='replace')[-2000:]}")
    return Cost(**told["cost"])


def mergd(*words: object, log: Path) -> Cost:
    """Run a command of mergd and return what it cost."""
    return cost_of(sys.executable, "-m", "mergd", *words, log=log)


@contextmanager
def work_folder() -> Iterator[Path]:
    """Make a folder here that goes away: on the disk that is to be measured, not on one in memory."""
    folder = Path(f".bench-{os.getpid()}").resolve()
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


class Merge:
    """A state and its watched folder."""

    def __init__(self, work: Path, base: Path, rule: str = "opcm", settings: Mapping[str, object] = {}) -> None:
        """Run `mergd init`; only the newest versions keep their files, so that many folds fit on a disk."""
        self.work, self.watch, self.state, self.config = work, work / "watch", work / "state", work / "mergd.toml"
        self.watch.mkdir(parents=True)
        given = {"keep_last": 1, "keep_within": "0s"} | dict(settings)
        words = [word for key, value in given.items() for word in ("--set", f"{key}={value}")]
        self.init = self.mergd("init", "--base", base, "--watch", self.watch, "--state", self.state, "--rule", rule,
                               "--config", self.config, *words, configured=False)  # fmt: skip

    def mergd(self, *words: object, configured: bool = True) -> Cost:
        """Run a command on this merge."""
        return mergd(*words, *(("-c", self.config) if configured else ()), log=self.work / "log")

    def run_once(self, of: int) -> Cost:
        """Fold what has arrived: so many checkpoints."""
        before = self.status()["folded"]
        cost = self.mergd("run", "--once", "--strict")
        assert self.status()["folded"] == before + of, self.status()
        return cost

    def drop(self, checkpoint: Path) -> None:
        """Let a checkpoint arrive, whole at once and marked as such; its files are links to those given."""
        aside = self.watch.with_name("incoming") / checkpoint.name
        shutil.copytree(checkpoint, aside, copy_function=os.link)
        (aside / "READY").touch()
        aside.rename(self.watch / checkpoint.name)

    def log(self) -> list[dict[str, Any]]:
        """Return what the versions' log says, the newest first."""
        return [json.loads(line) for line in (self.state / "log.jsonl").read_text().splitlines()]

    def status(self) -> dict[str, Any]:
        """Return what status.json says, or what is true before it is written first."""
        path = self.state / "status.json"
        status: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"folded": 0, "doing": "starts"}
        return status

    def current(self) -> str:
        """Return where the link `current` leads."""
        link = self.state / "models" / "current"
        return os.readlink(link) if link.is_symlink() else ""

    def disk(self) -> int:
        """Return the bytes that the state takes on disk."""
        stats = [os.lstat(path) for path in self.state.rglob("*")]
        return sum({s.st_ino: s.st_blocks * 512 for s in stats}.values())


@dataclass(frozen=True)
class Arrival:
    """What a fold in a running daemon cost: until `current` had moved, and from there until nothing was left to do."""

    fold: Cost
    idle: Cost


class Daemon:
    """A running `mergd run`."""

    def __init__(self, merge: Merge) -> None:
        self.merge = merge
        with (merge.work / "daemon.log").open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "mergd", "run", "-c", str(merge.config)], stdout=log, stderr=log
            )

    def so_far(self) -> Cost:
        """Return what the process has cost until now; its clock has all its threads, also those that ended."""
        pid = self._process.pid
        peak = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
        assert peak, "the daemon ended"
        return Cost(time.clock_gettime((~pid << 3) | 2), time.monotonic(), int(peak[1]) * 1024 / 1e6)

    def arrival(self, checkpoint: Path) -> Arrival:
        """Let a checkpoint arrive, and wait until it is folded and the daemon idle again."""
        os.sync()
        before, start = self.merge.current(), self.so_far()
        self.merge.drop(checkpoint)
        self._until(lambda: self.merge.current() != before, f"folded {checkpoint.name}")
        moved = self.so_far()
        return Arrival(moved.each(1, start), self.idle().each(1, moved))

    def idle(self) -> Cost:
        """Wait until it does nothing any more; returns the cost so far, without the wait for calm."""
        calm = self.so_far()

        def is_calm() -> bool:
            nonlocal calm
            now = self.so_far()
            if self.merge.status()["doing"] or now.cpu - calm.cpu > 0.1 * CALM:
                calm = now
            return now.wall - calm.wall > CALM

        self._until(is_calm, "became idle")
        return calm

    def stop(self) -> None:
        """End it."""
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(PATIENCE)

    def _until(self, seen: Callable[[], bool], what: str) -> None:
        until = time.monotonic() + PATIENCE
        while not seen():
            if self._process.poll() is not None or time.monotonic() > until:
                log = (self.merge.work / "daemon.log").read_text(errors="replace")
                sys.exit(f"the daemon never {what}; the end of its log:\n{log[-2000:]}")
            time.sleep(0.005)


@contextmanager
def running(merge: Merge) -> Iterator[Daemon]:
    """Run a daemon meanwhile; it is idle when this begins."""
    daemon = Daemon(merge)
    try:
        daemon.idle()
        yield daemon
    finally:
        daemon.stop()
